#include "answers.h"

#include <stdio.h>

#include "wire.h"

#define MODEL "bench-model"
#define CAPACITY (1L << 40) /* KV tokens: nothing ever waits for room */
#define NUM_TOKENS 16       /* output of an answer that is no stream */

static const char *const modes[] = {"prefill", "decode"};

int say_info(char *to, const struct worker *worker) {
    /* Local turns are a decoder's; a prefiller has no plugin to speak of. */
    const char *conserve = worker->role == DECODE
        ? "\"conserve\":{\"plugin_version\":\"bench\",\"sglang_version\":\"0.5.23\","
          "\"local_prefill\":true,\"continues\":true,\"resident_tokens\":0,\"page_size\":1},"
        : "";
    return snprintf(to, ANSWER_ROOM,
                    "{\"model_path\":\"" MODEL "\",\"served_model_name\":\"" MODEL "\","
                    "\"tp_size\":1,\"dp_size\":1,\"disaggregation_mode\":\"%s\","
                    "\"max_total_num_tokens\":%ld,\"max_running_requests\":4096,"
                    "\"version\":\"0.5.23\",\"internal_states\":[{%s\"memory_usage\":"
                    "{\"token_capacity\":%ld}}]}",
                    modes[worker->role], CAPACITY, conserve, CAPACITY);
}

int say_models(char *to) {
    return snprintf(to, ANSWER_ROOM,
                    "{\"object\":\"list\",\"data\":[{\"id\":\"" MODEL "\",\"object\":\"model\","
                    "\"created\":1,\"owned_by\":\"sglang\",\"root\":\"" MODEL "\","
                    "\"max_model_len\":131072}],\"model_path\":\"" MODEL "\","
                    "\"is_generation\":true,\"served_model_name\":\"" MODEL "\"}");
}

int say_counts(char *to, const struct worker *worker) {
    return snprintf(to, ANSWER_ROOM,
                    "{\"port\":%d,\"role\":\"%s\",\"turns\":%ld,\"paired\":%ld,\"local\":%ld,"
                    "\"marked\":%ld,\"closed\":%ld}",
                    worker->port, modes[worker->role], worker->num_turns, worker->num_paired,
                    worker->num_local, worker->num_marked, worker->num_closed);
}

struct counts {
    long prompt, cached;
};

static struct counts count(const struct turn *turn) {
    long prompt = (long)(turn->body_len / 4);
    return (struct counts){prompt, turn->is_paired ? 0 : prompt - 1};
}

int say_whole(char *to, const struct worker *worker, const struct turn *turn) {
    struct counts tokens = count(turn);
    if (turn->is_generate)
        return snprintf(to, ANSWER_ROOM,
                        "{\"text\":\"A short answer from %d to %s.\",\"output_ids\":[11,12,13,14],"
                        "\"meta_info\":{\"id\":\"%016lx\",\"finish_reason\":{\"type\":\"stop\","
                        "\"matched\":2},\"prompt_tokens\":%ld,\"completion_tokens\":%d,"
                        "\"cached_tokens\":%ld,\"e2e_latency\":0.001}}",
                        worker->port, turn->mark, (unsigned long)worker->num_turns, tokens.prompt,
                        NUM_TOKENS, tokens.cached);
    return snprintf(to, ANSWER_ROOM,
                    "{\"id\":\"%016lx\",\"object\":\"chat.completion\",\"created\":1,"
                    "\"model\":\"" MODEL "\",\"choices\":[{\"index\":0,\"message\":{\"role\":"
                    "\"assistant\",\"content\":\"A short answer from %d to %s.\",\"tool_calls\":"
                    "null},\"logprobs\":null,\"finish_reason\":\"stop\",\"matched_stop\":null}],"
                    "\"usage\":{\"prompt_tokens\":%ld,\"total_tokens\":%ld,\"completion_tokens\":"
                    "%d,\"prompt_tokens_details\":{\"cached_tokens\":%ld}},\"metadata\":"
                    "{\"weight_version\":\"default\"}}",
                    (unsigned long)worker->num_turns, worker->port, turn->mark, tokens.prompt,
                    tokens.prompt + NUM_TOKENS, NUM_TOKENS, tokens.cached);
}

int say_event(char *to, const struct worker *worker, const struct turn *turn, long left) {
    const char *finish = left == 1 ? "\"stop\"" : "null";
    unsigned long now = (unsigned long)clock_ns();
    if (turn->is_generate) {
        struct counts tokens = count(turn);
        return snprintf(to, ANSWER_ROOM,
                        "data: {\"text\":\"sent:%020lu \",\"output_ids\":[11],\"meta_info\":"
                        "{\"id\":\"%d\",\"finish_reason\":%s,\"prompt_tokens\":%ld,"
                        "\"completion_tokens\":%ld,\"cached_tokens\":%ld}}\n\n",
                        now, worker->port, finish, tokens.prompt, turn->num_chunks - left + 1,
                        tokens.cached);
    }
    return snprintf(to, ANSWER_ROOM,
                    "data: {\"id\":\"%d\",\"object\":\"chat.completion.chunk\",\"created\":1,"
                    "\"model\":\"" MODEL "\",\"choices\":[{\"index\":0,\"delta\":{\"role\":null,"
                    "\"content\":\"sent:%020lu \",\"reasoning_content\":null,\"tool_calls\":null},"
                    "\"logprobs\":null,\"finish_reason\":%s,\"matched_stop\":null}],"
                    "\"usage\":null}\n%s\n",
                    worker->port, now, finish, turn->tells ? ":=1234\n" : "");
}

int say_end(char *to, const struct worker *worker, const struct turn *turn) {
    int len = 0;
    if (turn->wants_usage) {
        struct counts tokens = count(turn);
        len = snprintf(to, ANSWER_ROOM,
                       "data: {\"id\":\"%d\",\"object\":\"chat.completion.chunk\",\"created\":1,"
                       "\"model\":\"" MODEL "\",\"choices\":[],\"usage\":{\"prompt_tokens\":%ld,"
                       "\"total_tokens\":%ld,\"completion_tokens\":%ld,"
                       "\"prompt_tokens_details\":{\"cached_tokens\":%ld}}}\n%s\n",
                       worker->port, tokens.prompt, tokens.prompt + turn->num_chunks,
                       turn->num_chunks, tokens.cached, turn->tells ? ":=\n" : "");
    }
    return len + snprintf(to + len, (size_t)(ANSWER_ROOM - len), "data: [DONE]\n\n");
}
