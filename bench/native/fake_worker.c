/* Fake SGLang workers: many ports, one thread, no model.

   fake_worker TICK_US prefill:PORT... decode:PORT...

   Turns are answered at once; streams of decoders get one event per stream and tick, all of them
   together, as the steps of a decode batch do. `num_marked` counts the turns whose prompt came
   with its mark and a body as long as it said. Prints "ready" when every port listens. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "answers.h"
#include "turn.h"
#include "wire.h"

enum { READ_AT_ONCE = 256 * 1024, MAX_EVENTS = 256 };

struct peer { /* a listening socket, the timer, or a connection */
    int fd, is_listener, is_timer, waits_to_write, is_last;
    struct worker *worker;
    struct bytes in, out;
    size_t out_done;
    struct turn turn;
    long left; /* events of the open stream still due */
    struct peer *next, **link; /* among the open streams, or among the dead */
};

static int poller;
static struct peer *streams, *dead;

static void watch(struct peer *peer, int operation, unsigned events) {
    struct epoll_event event = {.events = events, .data.ptr = peer};
    if (epoll_ctl(poller, operation, peer->fd, &event))
        fail("epoll");
}

static void stream_end(struct peer *peer) {
    if (peer->link) {
        *peer->link = peer->next;
        if (peer->next)
            peer->next->link = peer->link;
        peer->link = NULL;
    }
}

static void stream_begin(struct peer *peer) {
    peer->next = streams;
    if (streams)
        streams->link = &peer->next;
    streams = peer;
    peer->link = &streams;
}

static void hang_up(struct peer *peer) {
    if (peer->fd < 0)
        return;
    stream_end(peer);
    close(peer->fd);
    peer->fd = -1;
    peer->next = dead;
    dead = peer;
}

/* Frees the dead once no event at hand can name them any more. */
static void bury(void) {
    while (dead) {
        struct peer *peer = dead;
        dead = peer->next;
        bytes_free(&peer->in);
        bytes_free(&peer->out);
        free(peer);
    }
}

/* Sends what is to be sent. 0: the connection is gone, and the peer with it. */
static int flush(struct peer *peer) {
    long done = bytes_write(peer->fd, peer->out.at, peer->out.len, peer->out_done);
    if (done < 0 || (peer->is_last && (size_t)done == peer->out.len && !peer->link)) {
        hang_up(peer);
        return 0;
    }
    peer->out_done = (size_t)done;
    int waits = peer->out_done < peer->out.len;
    if (!waits)
        peer->out.len = peer->out_done = 0;
    if (waits != peer->waits_to_write) {
        peer->waits_to_write = waits;
        watch(peer, EPOLL_CTL_MOD, EPOLLIN | (waits ? EPOLLOUT : 0));
    }
    return 1;
}

static void answer(struct peer *peer, const char *status, const char *body, int len) {
    char head[256];
    int head_len = snprintf(head, sizeof head,
                            "HTTP/1.1 %s\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: bench\r\n"
                            "content-type: application/json\r\ncontent-length: %d\r\n\r\n",
                            status, len);
    bytes_add(&peer->out, head, (size_t)head_len);
    bytes_add(&peer->out, body, (size_t)len);
}

static void add_chunk(struct peer *peer, const char *body, int len) {
    char size[16];
    bytes_add(&peer->out, size, (size_t)snprintf(size, sizeof size, "%x\r\n", (unsigned)len));
    bytes_add(&peer->out, body, (size_t)len);
    bytes_add(&peer->out, "\r\n", 2);
}

/* The next event of a stream, and its end behind the last one. */
static void stream_step(struct peer *peer) {
    char body[ANSWER_ROOM];
    add_chunk(peer, body, say_event(body, peer->worker, &peer->turn, peer->left));
    if (--peer->left)
        return;
    add_chunk(peer, body, say_end(body, peer->worker, &peer->turn));
    bytes_add(&peer->out, "0\r\n\r\n", 5);
    stream_end(peer);
}

static void serve_turn(struct peer *peer, const char *path, const char *body, size_t len) {
    static const char tell[] = "x-conserve-tell: ";
    struct worker *worker = peer->worker;
    struct turn *turn = &peer->turn;
    *turn = turn_read(path, body, len);
    turn->tells = turn->is_stream && find(path, (size_t)(body - path), tell) != NULL;
    worker->num_turns++;
    worker->num_paired += turn->is_paired;
    worker->num_local += !turn->is_paired;
    worker->num_marked += turn->mark[0] && body[0] == '{' && body[len - 1] == '}';
    if (!turn->is_stream) {
        char whole[ANSWER_ROOM];
        answer(peer, "200 OK", whole, say_whole(whole, worker, turn));
        return;
    }
    static const char head[] = "HTTP/1.1 200 OK\r\nserver: bench\r\ncontent-type: text/event-stream; "
                               "charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    bytes_add(&peer->out, head, sizeof head - 1);
    peer->left = worker->role == PREFILL || turn->num_chunks < 1 ? 1 : turn->num_chunks;
    if (peer->left == 1)
        stream_step(peer);
    else
        stream_begin(peer);
}

static void serve(struct peer *peer, const char *path, const char *body, size_t len) {
    static const char *const turns[] = {"/v1/chat/completions", "/v1/completions", "/generate", 0};
    static const char *const empty[] = {"/health", "/health_generate", "/ready", "/flush_cache", 0};
    static const char *const info[] = {"/server_info", "/get_server_info", 0};
    static const char *const models[] = {"/v1/models", "/model_info", "/get_model_info", 0};
    static const char *const counts[] = {"/counts", 0}, *const closing[] = {"/close_session", 0};
    char text[ANSWER_ROOM];
    if (path_is_one_of(path, turns) && len > 1)
        serve_turn(peer, path, body, len);
    else if (path_is_one_of(path, empty))
        answer(peer, "200 OK", "", 0);
    else if (path_is_one_of(path, info))
        answer(peer, "200 OK", text, say_info(text, peer->worker));
    else if (path_is_one_of(path, models))
        answer(peer, "200 OK", text, say_models(text));
    else if (path_is_one_of(path, counts))
        answer(peer, "200 OK", text, say_counts(text, peer->worker));
    else if (path_is_one_of(path, closing))
        peer->worker->num_closed++, answer(peer, "200 OK", "", 0);
    else
        answer(peer, "404 Not Found", "{}", 2);
}

/* Serves whole requests; a stream under way holds back those behind it. */
static void serve_all(struct peer *peer) {
    while (!peer->link && peer->in.len) {
        struct head head = head_read(peer->in.at, peer->in.len);
        if (!head.len)
            break;
        if (head.body_len == LENGTH_CHUNKED) { /* no router measured sends one */
            answer(peer, "411 Length Required", "{}", 2);
            peer->is_last = 1;
            break;
        }
        size_t len = head.body_len > 0 ? (size_t)head.body_len : 0;
        if (peer->in.len < head.len + len)
            break;
        const char *path = memchr(peer->in.at, ' ', head.len);
        peer->is_last = head.asks_to_close;
        serve(peer, path ? path + 1 : "", peer->in.at + head.len, len);
        bytes_drop(&peer->in, head.len + len);
    }
    flush(peer);
}

static void tick(struct peer *timer) {
    uint64_t times;
    if (read(timer->fd, &times, sizeof times) < 0)
        return;
    for (struct peer *peer = streams, *next; peer; peer = next) {
        next = peer->next;
        stream_step(peer);
        if (peer->link)
            flush(peer);
        else
            serve_all(peer);
    }
}

static void take_in(struct peer *listener) {
    int fd, on = 1;
    while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct peer *peer = calloc(1, sizeof *peer);
        peer->fd = fd;
        peer->worker = listener->worker;
        watch(peer, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static void handle(struct peer *peer, unsigned events) {
    if (peer->fd < 0)
        return;
    if (peer->is_listener)
        take_in(peer);
    else if (peer->is_timer)
        tick(peer);
    else if ((events & EPOLLOUT) && !flush(peer))
        return;
    else if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        if (bytes_read(&peer->in, peer->fd, READ_AT_ONCE) < 0)
            hang_up(peer);
        else
            serve_all(peer);
    }
}

static void listen_on(const char *plan) {
    struct worker *worker = calloc(1, sizeof *worker);
    struct peer *peer = calloc(1, sizeof *peer);
    worker->role = strncmp(plan, "prefill:", 8) ? DECODE : PREFILL;
    worker->port = atoi(strchr(plan, ':') ? strchr(plan, ':') + 1 : "");
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons((uint16_t)worker->port)};
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int on = 1;
    peer->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(peer->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(peer->fd, (struct sockaddr *)&where, sizeof where) || listen(peer->fd, 1024))
        fail(plan);
    peer->worker = worker;
    peer->is_listener = 1;
    watch(peer, EPOLL_CTL_ADD, EPOLLIN);
}

static void start_ticks(long tick_us) {
    struct peer *peer = calloc(1, sizeof *peer);
    struct timespec period = {tick_us / 1000000, tick_us % 1000000 * 1000};
    struct itimerspec every = {period, period};
    peer->is_timer = 1;
    peer->fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    timerfd_settime(peer->fd, 0, &every, NULL);
    watch(peer, EPOLL_CTL_ADD, EPOLLIN);
}

int main(int argc, char **argv) {
    if (argc < 3)
        return fprintf(stderr, "usage: fake_worker TICK_US ROLE:PORT...\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    start_ticks(atol(argv[1]));
    for (int i = 2; i < argc; i++)
        listen_on(argv[i]);
    printf("ready\n");
    fflush(stdout);
    struct epoll_event events[MAX_EVENTS];
    for (;;) {
        int count = epoll_wait(poller, events, MAX_EVENTS, -1);
        for (int i = 0; i < count; i++)
            handle(events[i].data.ptr, events[i].events);
        bury();
    }
}
