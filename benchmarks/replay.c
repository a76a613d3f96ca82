/* Replays calls that were framed beforehand over one HTTP/2 connection, and checks every answer.
 *
 *   replay HOST PORT FILE
 *
 * FILE: uint32 size of the greeting, the greeting (preface, settings, a first call on stream 1), uint32 count, and per
 * call uint32 size and its frames with stream id 0; little-endian. One command a line on standard input, one JSON
 * object a line in answer:
 *   closed IN_FLIGHT COUNT SECONDS   as many as are answered; ends at COUNT, or SECONDS later (0 = COUNT alone)
 *   open PER_SECOND COUNT            one every 1/PER_SECOND s whether answered or not; latency counts from when it was due
 *   dump FILE                        the kept answers: per call uint32 size and its DATA payloads
 * The first answer to each call is kept, for who asked to look at it; each later one must be the same, byte by byte.
 * No library, no allocation per call: the generator must cost less than what it measures.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { DATA = 0, HEADERS = 1, RESET = 3, SETTINGS = 4, PING = 6, GOAWAY = 7, WINDOW = 8 };
enum { SLOTS = 1 << 14, IN_BYTES = 1 << 22, OUT_BYTES = 1 << 25, WINDOW_STEP = 1 << 28, MAX_TIMES = 1 << 22 };
static const int64_t STALL_NS = 60LL * 1000000000;

typedef struct { uint8_t *bytes; uint32_t size; uint8_t *answer; uint32_t answer_size; int is_kept; } Call;
typedef struct { uint32_t stream, call, got, sent; int64_t window, since_ns; } Slot;

static Call *calls;
static uint32_t call_count, next_call, next_stream = 3;
static Slot slots[SLOTS];
static uint8_t *in, *out;
static size_t in_size, out_start, out_end;
static Slot *unsent[SLOTS];
static uint32_t unsent_count;
static int connection;
static int64_t send_window = 65535, stream_window = 65535, received;
static uint32_t *times_ns, answered, in_flight;
static int64_t last_answer_ns;

static void die(const char *what) {
    printf("{\"error\": \"%s\"}\n", what);
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t own_cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static uint32_t big(const uint8_t *at, int size) {
    uint32_t value = 0;
    while (size--) value = value << 8 | *at++;
    return value;
}

static void put_big(uint8_t *at, uint32_t value) {
    for (int i = 3; i >= 0; i--, value >>= 8) at[i] = (uint8_t)value;
}

static void queue_bytes(const void *bytes, size_t size) {
    if (out_start == out_end) out_start = out_end = 0;
    if (out_end + size > OUT_BYTES) die("more to send than the generator holds");
    memcpy(out + out_end, bytes, size);
    out_end += size;
}

static void queue_frame(uint8_t kind, uint8_t flags, const uint8_t *payload, uint8_t size) {
    uint8_t head[9] = {0, 0, size, kind, flags, 0, 0, 0, 0};
    queue_bytes(head, 9);
    queue_bytes(payload, size);
}

/* Queues the frames of a call as far as the server's windows allow; true if it is all out. */
static int queue_rest(Slot *slot) {
    Call *call = &calls[slot->call];
    while (slot->sent < call->size) {
        uint8_t *at = call->bytes + slot->sent;
        uint32_t size = big(at, 3), counted = at[3] == DATA ? size : 0;
        if (counted > send_window || counted > slot->window || out_end > OUT_BYTES / 2) return 0;
        put_big(at + 5, slot->stream);
        queue_bytes(at, 9 + size);
        send_window -= counted;
        slot->window -= counted;
        slot->sent += 9 + size;
    }
    return 1;
}

static void queue_unsent(void) {
    uint32_t left = 0;
    for (uint32_t i = 0; i < unsent_count; i++)
        if (!queue_rest(unsent[i])) unsent[left++] = unsent[i];
    unsent_count = left;
}

static void queue_call(int64_t since_ns) {
    Slot *slot = &slots[next_stream / 2 % SLOTS];
    if (slot->stream) die("an answer is missing since thousands of calls");
    *slot = (Slot){next_stream, next_call, 0, 0, stream_window, since_ns};
    if (unsent_count || !queue_rest(slot)) unsent[unsent_count++] = slot;
    next_call = (next_call + 1) % call_count;
    next_stream += 2;
    in_flight++;
}

static void on_data(uint32_t stream, const uint8_t *payload, uint32_t size) {
    Slot *slot = &slots[stream / 2 % SLOTS];
    if (stream == 1) return;
    if (slot->stream != stream) die("an answer on a stream that is not open");
    Call *call = &calls[slot->call];
    if (!call->is_kept) {
        call->answer = realloc(call->answer, slot->got + size);
        memcpy(call->answer + slot->got, payload, size);
        call->answer_size = slot->got + size;
    } else if (slot->got + size > call->answer_size || memcmp(call->answer + slot->got, payload, size)) {
        die("a call was answered with other bytes than before");
    }
    slot->got += size;
}

static void on_end(uint32_t stream, int64_t at_ns) {
    Slot *slot = &slots[stream / 2 % SLOTS];
    last_answer_ns = at_ns;
    if (stream == 1) {
        answered++;
        return;
    }
    Call *call = &calls[slot->call];
    if (slot->stream != stream || slot->got == 0) die("a call was refused: an end without an answer");
    if (slot->got != call->answer_size) die("a call was answered with fewer bytes than before");
    int64_t took = at_ns - slot->since_ns;
    call->is_kept = 1;
    slot->stream = 0;
    if (answered < MAX_TIMES) times_ns[answered] = took > UINT32_MAX ? UINT32_MAX : (uint32_t)took;
    answered++;
    in_flight--;
}

static void on_settings(const uint8_t *payload, uint32_t size) {
    for (uint32_t at = 0; at + 6 <= size; at += 6)
        if (big(payload + at, 2) == 4) {
            int64_t change = (int64_t)big(payload + at + 2, 4) - stream_window;
            stream_window += change;
            for (uint32_t i = 0; i < unsent_count; i++) unsent[i]->window += change; /* RFC 9113 6.9.2 */
        }
    queue_frame(SETTINGS, 1, payload, 0);
}

static void on_frame(const uint8_t *at, uint32_t size, int64_t at_ns) {
    uint8_t kind = at[3], flags = at[4];
    uint32_t stream = big(at + 5, 4);
    const uint8_t *payload = at + 9;
    if (kind == DATA) {
        if (flags & 8) die("padded data");
        on_data(stream, payload, size);
        received += size;
    } else if (kind == SETTINGS && !(flags & 1)) {
        on_settings(payload, size);
    } else if (kind == PING && !(flags & 1)) {
        queue_frame(PING, 1, payload, 8);
    } else if (kind == WINDOW) {
        Slot *slot = &slots[stream / 2 % SLOTS];
        if (stream == 0) send_window += big(payload, 4);
        else if (slot->stream == stream) slot->window += big(payload, 4);
    } else if (kind == RESET || kind == GOAWAY) {
        die("the server ended a stream or the connection");
    }
    if ((kind == DATA || kind == HEADERS) && flags & 1) on_end(stream, at_ns);
    if (received > WINDOW_STEP) { /* the greeting opened the connection's window to the most there is */
        uint8_t increment[13] = {0, 0, 4, WINDOW, 0, 0, 0, 0, 0};
        put_big(increment + 9, (uint32_t)received);
        queue_bytes(increment, 13);
        received = 0;
    }
}

/* Sends what is queued, waits until `until_ns` (0: for an answer) and takes in what came. */
static void step(int64_t until_ns) {
    int64_t wait_ns = until_ns ? until_ns - now_ns() : STALL_NS;
    if (wait_ns < 0) wait_ns = 0;
    if (unsent_count) queue_unsent();
    while (out_start < out_end) {
        ssize_t sent = send(connection, out + out_start, out_end - out_start, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) break;
        if (sent <= 0) die("the connection broke");
        out_start += (size_t)sent;
    }
    struct pollfd poll_for = {connection, (short)(POLLIN | (out_start < out_end ? POLLOUT : 0)), 0};
    struct timespec wait = {wait_ns / 1000000000, wait_ns % 1000000000};
    int ready = ppoll(&poll_for, 1, &wait, NULL);
    if (ready == 0 && !until_ns) die("no answer within a minute");
    if (ready <= 0 || !(poll_for.revents & (POLLIN | POLLHUP | POLLERR))) return;
    ssize_t got = recv(connection, in + in_size, IN_BYTES - in_size, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) die("the server closed the connection");
    in_size += (size_t)got;
    int64_t at_ns = now_ns();
    size_t at = 0;
    while (in_size - at >= 9 && in_size - at >= 9 + big(in + at, 3)) {
        on_frame(in + at, big(in + at, 3), at_ns);
        at += 9 + big(in + at, 3);
    }
    memmove(in, in + at, in_size - at);
    in_size -= at;
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void tell(int64_t start_ns, int64_t cpu_ns) {
    double seconds = (double)(last_answer_ns - start_ns) / 1e9;
    uint32_t kept = answered < MAX_TIMES ? answered : MAX_TIMES;
    qsort(times_ns, kept, sizeof *times_ns, by_size);
    printf("{\"answered\": %u, \"seconds\": %.9f, \"client_cpu_us\": %.3f, \"p50_us\": %.3f, \"p99_us\": %.3f, "
           "\"max_us\": %.3f}\n",
           answered, seconds, (double)cpu_ns / 1e3 / answered, times_ns[kept / 2] / 1e3,
           times_ns[(uint64_t)kept * 99 / 100] / 1e3, times_ns[kept - 1] / 1e3);
}

static void run_closed(uint32_t width, uint32_t count, double seconds) {
    int64_t start = now_ns(), cpu = own_cpu_ns(), end = seconds > 0 ? start + (int64_t)(seconds * 1e9) : INT64_MAX;
    uint32_t sent = 0;
    answered = 0;
    while (answered < count) {
        int64_t at = now_ns();
        while (in_flight < width && sent < count && at < end) queue_call(at), sent++;
        if (at >= end && !in_flight) break;
        step(0);
    }
    tell(start, own_cpu_ns() - cpu);
}

static void run_open(double per_second, uint32_t count) {
    int64_t start = now_ns(), cpu = own_cpu_ns();
    uint32_t sent = 0;
    answered = 0;
    while (answered < count) {
        int64_t due = start + (int64_t)(sent * 1e9 / per_second);
        if (sent < count && now_ns() >= due) {
            queue_call(due);
            sent++;
            due = start + (int64_t)(sent * 1e9 / per_second);
        }
        step(sent < count ? due : 0);
    }
    tell(start, own_cpu_ns() - cpu);
}

static void dump(const char *path) {
    FILE *file = fopen(path, "wb");
    if (!file) die("the answers cannot be written");
    for (uint32_t i = 0; i < call_count; i++) {
        uint32_t size = calls[i].is_kept ? calls[i].answer_size : 0;
        fwrite(&size, 4, 1, file);
        fwrite(calls[i].answer, 1, size, file);
    }
    if (fclose(file)) die("the answers cannot be written");
    printf("{}\n");
}

static uint32_t read_size(FILE *file) {
    uint32_t size;
    if (fread(&size, 4, 1, file) != 1) die("the file of calls is cut off");
    return size;
}

static uint8_t *read_bytes(FILE *file, uint32_t size) {
    uint8_t *bytes = malloc(size);
    if (fread(bytes, 1, size, file) != size) die("the file of calls is cut off");
    return bytes;
}

static void read_calls(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) die("the file of calls cannot be read");
    uint32_t size = read_size(file);
    queue_bytes(read_bytes(file, size), size);
    call_count = read_size(file);
    calls = calloc(call_count, sizeof *calls);
    for (uint32_t i = 0; i < call_count; i++) calls[i].bytes = read_bytes(file, calls[i].size = read_size(file));
    fclose(file);
}

int main(int count, char **words) {
    if (count != 4) return 2;
    in = malloc(IN_BYTES), out = malloc(OUT_BYTES), times_ns = malloc(MAX_TIMES * sizeof *times_ns);
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(words[2]))};
    connection = socket(AF_INET, SOCK_STREAM, 0);
    int yes = 1;
    if (inet_pton(AF_INET, words[1], &to.sin_addr) != 1 || connect(connection, (void *)&to, sizeof to)) die("no server");
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    fcntl(connection, F_SETFL, O_NONBLOCK);
    read_calls(words[3]);
    while (answered < 1) step(0); /* the first call, which is part of the greeting, fills the header table */
    printf("{\"calls\": %u}\n", call_count);
    char line[4096], path[4000];
    while (fgets(line, sizeof line, stdin)) {
        unsigned width, total;
        double number;
        if (sscanf(line, "closed %u %u %lf", &width, &total, &number) == 3) run_closed(width, total, number);
        else if (sscanf(line, "open %lf %u", &number, &total) == 2) run_open(number, total);
        else if (sscanf(line, "dump %3999s", path) == 1) dump(path);
        else die("a command that is not known");
    }
    return 0;
}
