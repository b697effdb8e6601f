/* A closed loop of requests over kept-alive connections, in one thread.

   load_client PORT CONNECTIONS WARM_UP_S SECONDS SEED PATH BODY_FILE
               [HEADER TURNS [REPORT_PATH REPORT_FILE]]

   Sixteen "@" in the body become a number of their own in every request. The same in HEADER (one
   line, "name: value") does so every TURNS requests of a connection, or once for it if TURNS is 0.
   Thirty-two "#" in a body become the "turn" of the last answer that had one. With a report, each
   answer is followed by that second request, and the two count as one.
   Prints one JSON line about the requests that ended within SECONDS after the warm-up; "ended" and
   "all_events" count from the start to the end of the requests then under way. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "samples.h"
#include "wire.h"

#define PLACE "@@@@@@@@@@@@@@@@"
#define TURN_PLACE "################################"
#define TURN "\"turn\":\""
enum { TURN_LEN = 32, READ_AT_ONCE = 64 * 1024, MAX_EVENTS = 256, GRACE_NS = 300000000 };

struct caller { /* one connection and its request under way */
    int fd, waits_to_write;
    unsigned number;
    struct bytes request, report, in, events;
    struct bytes *out;                   /* the one under way */
    size_t sent, body_place, name_place; /* places in the request; 0: none */
    size_t turn_place;                   /* in the report, or in the request without one */
    struct head head;
    struct chunks chunks;
    long body_got;
    char last_byte;
    uint64_t began_ns, count;
};

static int poller;
static unsigned turns_per_name = 1;
static unsigned long seed;
static uint64_t start_ns, end_ns;
static struct samples latency, lateness;
static long num_requests, num_errors, num_events, num_ended, num_all_events, num_open;

static void watch(struct caller *caller, int operation, unsigned events) {
    struct epoll_event event = {.events = events, .data.ptr = caller};
    if (epoll_ctl(poller, operation, caller->fd, &event))
        fail("epoll");
}

static void put_number(struct caller *caller, size_t place, uint64_t count) {
    char text[17];
    if (!place)
        return;
    snprintf(text, sizeof text, "%05lx%03x%08lx", seed & 0xfffff, caller->number & 0xfff,
             (unsigned long)(count & 0xffffffff));
    memcpy(caller->request.at + place, text, 16);
}

static void push(struct caller *caller) {
    long sent = bytes_write(caller->fd, caller->out->at, caller->out->len, caller->sent);
    if (sent < 0)
        fail("send");
    caller->sent = (size_t)sent;
    int waits = caller->sent < caller->out->len;
    if (waits != caller->waits_to_write) {
        caller->waits_to_write = waits;
        watch(caller, EPOLL_CTL_MOD, EPOLLIN | (waits ? EPOLLOUT : 0));
    }
}

static void start(struct caller *caller, struct bytes *out) {
    caller->out = out;
    caller->sent = 0;
    caller->head = (struct head){0};
    caller->chunks = (struct chunks){0};
    caller->body_got = 0;
    push(caller);
}

static void ask(struct caller *caller) {
    caller->count++;
    put_number(caller, caller->body_place, caller->count);
    if (turns_per_name)
        put_number(caller, caller->name_place, (caller->count - 1) / turns_per_name);
    caller->began_ns = clock_ns();
    num_open++;
    start(caller, &caller->request);
}

static int is_counted(uint64_t now_ns) { return now_ns >= start_ns && now_ns < end_ns; }

static void finish(struct caller *caller) {
    uint64_t now = clock_ns();
    int is_reporting = caller->out == &caller->report;
    int is_whole = caller->head.status == 200 && caller->body_got > (is_reporting ? 50 : 100) &&
                   (caller->last_byte == '}' || caller->last_byte == '\n');
    if (is_whole && caller->report.len && !is_reporting) {
        start(caller, &caller->report);
        return;
    }
    num_open--;
    num_ended++;
    num_errors += !is_whole;
    if (is_counted(now)) {
        num_requests += is_whole;
        samples_add(&latency, now - caller->began_ns);
    }
    if (now < end_ns)
        ask(caller);
}

/* The events of a stream say when they were sent. */
static void read_events(struct caller *caller) {
    uint64_t now = clock_ns();
    size_t done = 0;
    const char *stop;
    while ((stop = find(caller->events.at + done, caller->events.len - done, "\n\n"))) {
        const char *event = caller->events.at + done;
        const char *sent = find(event, (size_t)(stop - event), "sent:");
        num_all_events += sent != NULL;
        if (sent && is_counted(now)) {
            num_events++;
            samples_add(&lateness, now - strtoull(sent + 5, NULL, 10));
        }
        done = (size_t)(stop + 2 - caller->events.at);
    }
    bytes_drop(&caller->events, done);
}

/* Short answers come in one piece. */
static void note_turn(struct caller *caller) {
    const char *at = find(caller->in.at, caller->in.len, TURN);
    size_t from = at ? (size_t)(at - caller->in.at) + strlen(TURN) : 0;
    struct bytes *to = caller->report.len ? &caller->report : &caller->request;
    if (at && from + TURN_LEN <= caller->in.len)
        memcpy(to->at + caller->turn_place, caller->in.at + from, TURN_LEN);
}

static void take(struct caller *caller, const char *at, size_t len) {
    caller->body_got += (long)len;
    if (len)
        caller->last_byte = at[len - 1];
}

static void read_chunked(struct caller *caller) {
    size_t before = caller->events.len;
    chunks_read(&caller->chunks, &caller->in, &caller->events);
    take(caller, caller->events.at + before, caller->events.len - before);
    read_events(caller);
    if (caller->chunks.is_bad)
        fail("a chunked answer that is none");
    if (caller->chunks.is_over) {
        caller->events.len = 0;
        finish(caller);
    }
}

static void read_answer(struct caller *caller) {
    if (!caller->head.len) {
        caller->head = head_read(caller->in.at, caller->in.len);
        if (!caller->head.len)
            return;
        bytes_drop(&caller->in, caller->head.len);
        if (caller->head.body_len == LENGTH_UNKNOWN)
            fail("an answer without a length");
    }
    if (caller->head.body_len == LENGTH_CHUNKED) {
        read_chunked(caller);
        return;
    }
    if (caller->turn_place)
        note_turn(caller);
    take(caller, caller->in.at, caller->in.len);
    bytes_drop(&caller->in, caller->in.len);
    if (caller->body_got == caller->head.body_len)
        finish(caller);
}

static void handle(struct caller *caller, unsigned events) {
    if (events & EPOLLOUT)
        push(caller);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return;
    int got = bytes_read(&caller->in, caller->fd, READ_AT_ONCE);
    if (got < 0)
        fail("the other side closed a connection");
    if (got)
        read_answer(caller);
}

static void call(struct caller *caller, int port) {
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int on = 1;
    caller->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(caller->fd, (struct sockaddr *)&where, sizeof where))
        fail("connect");
    setsockopt(caller->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    watch(caller, EPOLL_CTL_ADD, EPOLLIN);
}

static struct bytes read_file(const char *path) {
    struct bytes text = {0};
    char piece[4096];
    FILE *file = fopen(path, "rb");
    if (!file)
        fail(path);
    for (size_t got; (got = fread(piece, 1, sizeof piece, file)) > 0;)
        bytes_add(&text, piece, got);
    fclose(file);
    return text;
}

static size_t write_request(struct bytes *request, const char *path, const char *header,
                            const struct bytes *body) {
    char head[2048];
    int len = snprintf(head, sizeof head,
                       "POST %s HTTP/1.1\r\nhost: 127.0.0.1\r\nuser-agent: bench\r\n"
                       "accept: */*\r\nauthorization: Bearer none\r\n"
                       "content-type: application/json\r\n%s%scontent-length: %zu\r\n\r\n",
                       path, header, *header ? "\r\n" : "", body->len);
    bytes_add(request, head, (size_t)len);
    bytes_add(request, body->at, body->len);
    return (size_t)len;
}

static size_t place_of(const struct bytes *request, size_t from, size_t len, const char *place) {
    const char *at = find(request->at + from, len, place);
    return at ? (size_t)(at - request->at) : 0;
}

static void prepare(struct caller *caller, const char *path, const char *header,
                    const struct bytes *body) {
    struct bytes *request = &caller->request;
    size_t len = write_request(request, path, header, body);
    caller->name_place = place_of(request, 0, len, PLACE);
    caller->body_place = place_of(request, len, body->len, PLACE);
    caller->turn_place = place_of(request, len, body->len, TURN_PLACE);
    put_number(caller, caller->name_place, 0);
}

static void prepare_report(struct caller *caller, const char *path, const char *header,
                           const struct bytes *body) {
    size_t len = write_request(&caller->report, path, header, body);
    caller->turn_place = place_of(&caller->report, len, body->len, TURN_PLACE);
}

static void report(double seconds) {
    printf("{\"requests\":%ld,\"errors\":%ld,\"seconds\":%.3f,\"requests_per_s\":%.1f,"
           "\"events\":%ld,\"ended\":%ld,\"all_events\":%ld,",
           num_requests, num_errors, seconds, (double)num_requests / seconds, num_events, num_ended,
           num_all_events);
    samples_print(&latency, "latency_us");
    printf(",");
    samples_print(&lateness, "lateness_us");
    printf("}\n");
}

static void loop(void) {
    struct epoll_event events[MAX_EVENTS];
    uint64_t over_ns = end_ns + GRACE_NS;
    for (uint64_t now; (now = clock_ns()) < end_ns || (num_open && now < over_ns);) {
        int count = epoll_wait(poller, events, MAX_EVENTS, (int)((over_ns - now) / 1000000) + 1);
        for (int i = 0; i < count; i++)
            handle(events[i].data.ptr, events[i].events);
    }
}

int main(int argc, char **argv) {
    if (argc != 8 && argc != 10 && argc != 12)
        return fprintf(stderr, "load_client: see the head of its source for its arguments\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    int port = atoi(argv[1]), num_callers = atoi(argv[2]);
    double warm_up_s = atof(argv[3]), seconds = atof(argv[4]);
    seed = strtoul(argv[5], NULL, 10);
    if (argc >= 10)
        turns_per_name = (unsigned)atoi(argv[9]);
    struct bytes body = read_file(argv[7]), report_body = {0};
    if (argc == 12)
        report_body = read_file(argv[11]);
    struct caller *callers = calloc((size_t)num_callers, sizeof *callers);
    for (int i = 0; i < num_callers; i++) {
        callers[i].number = (unsigned)i;
        prepare(&callers[i], argv[6], argc >= 10 ? argv[8] : "", &body);
        if (argc == 12)
            prepare_report(&callers[i], argv[10], argv[8], &report_body);
        call(&callers[i], port);
    }
    start_ns = clock_ns() + (uint64_t)(warm_up_s * 1e9);
    end_ns = start_ns + (uint64_t)(seconds * 1e9);
    for (int i = 0; i < num_callers; i++)
        ask(&callers[i]);
    loop();
    report(seconds);
    return 0;
}
