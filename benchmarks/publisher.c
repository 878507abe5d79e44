/* The fastest publisher we know to compare with: librabbitmq, a sliding window of 1 000 unconfirmed messages.
   publisher HOST PORT EXCHANGE ROUTING_KEY; reads lines "COUNT RICH", answers each with a line of JSON. */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>

#define WINDOW 1000

static void die(const char *what) {
    fprintf(stderr, "publisher: %s\n", what);
    exit(1);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static double cpu(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_utime.tv_usec / 1e6 + used.ru_stime.tv_sec + used.ru_stime.tv_usec / 1e6;
}

static void new_id(char *text) {
    unsigned char raw[16];
    if (getrandom(raw, sizeof raw, 0) != sizeof raw) die("getrandom");
    raw[6] = (raw[6] & 0x0f) | 0x40;
    raw[8] = (raw[8] & 0x3f) | 0x80;
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) *text++ = '-';
        *text++ = "0123456789abcdef"[raw[i] >> 4];
        *text++ = "0123456789abcdef"[raw[i] & 15];
    }
    *text = 0;
}

/* Which messages of this job are confirmed; `low`: all before it are. Acks may come out of order. */
static char *acked;
static long low;

/* Reads one answer; returns how many messages it confirms. `base`: the last delivery tag before this job. */
static long answer(amqp_connection_state_t connection, unsigned long long base) {
    amqp_frame_t frame;
    amqp_maybe_release_buffers(connection);
    if (amqp_simple_wait_frame(connection, &frame) != AMQP_STATUS_OK) die("connection lost");
    if (frame.frame_type != AMQP_FRAME_METHOD) return 0;
    if (frame.payload.method.id != AMQP_BASIC_ACK_METHOD) die("a message was returned or nacked");
    amqp_basic_ack_t *ack = frame.payload.method.decoded;
    long last = (long)(ack->delivery_tag - base), fresh = 0;
    for (long i = ack->multiple ? low : last - 1; i < last; i++) {
        fresh += !acked[i];
        acked[i] = 1;
    }
    if (ack->multiple && last > low) low = last;
    return fresh;
}

static void text_header(amqp_table_entry_t *entry, const char *name, const char *value) {
    entry->key = amqp_cstring_bytes(name);
    entry->value.kind = AMQP_FIELD_KIND_UTF8;
    entry->value.value.bytes = amqp_cstring_bytes(value);
}

int main(int argc, char **argv) {
    if (argc != 5) die("usage: publisher HOST PORT EXCHANGE ROUTING_KEY");
    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    if (!socket || amqp_socket_open(socket, argv[1], atoi(argv[2]))) die("cannot connect");
    if (amqp_login(connection, "/", 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest").reply_type !=
        AMQP_RESPONSE_NORMAL) die("cannot log in");
    amqp_channel_open(connection, 1);
    amqp_confirm_select(connection, 1);
    if (amqp_get_rpc_reply(connection).reply_type != AMQP_RESPONSE_NORMAL) die("no channel");

    char body[500], id[37], key[32], line[100];
    memset(body, 'x', sizeof body);
    amqp_bytes_t content = {sizeof body, body};
    amqp_table_entry_t headers[3];
    text_header(&headers[1], "tenant", "tenant-17");
    text_header(&headers[2], "trace", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    unsigned long long base = 0;
    while (fgets(line, sizeof line, stdin)) {
        long count = 0, sent = 0, confirmed = 0;
        int rich = 0;
        if (sscanf(line, "%ld %d", &count, &rich) != 2) die("expected: COUNT RICH");
        acked = calloc(count + 1, 1);
        low = 0;
        if (!acked) die("no memory");
        double start = seconds(), start_cpu = cpu();
        while (confirmed < count) {
            while (sent < count && sent - confirmed < WINDOW) {
                amqp_basic_properties_t properties = {0};
                properties._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG |
                                    AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_TYPE_FLAG;
                new_id(id);
                properties.content_type = amqp_cstring_bytes("application/json");
                properties.delivery_mode = 2;
                properties.message_id = amqp_cstring_bytes(id);
                properties.timestamp = (uint64_t)time(NULL);
                properties.type = amqp_cstring_bytes("order.placed");
                if (rich) {
                    snprintf(key, sizeof key, "customer-%ld", sent % 1000);
                    text_header(&headers[0], "ordering-key", key);
                    properties._flags |= AMQP_BASIC_HEADERS_FLAG;
                    properties.headers.num_entries = 3;
                    properties.headers.entries = headers;
                }
                if (amqp_basic_publish(connection, 1, amqp_cstring_bytes(argv[3]), amqp_cstring_bytes(argv[4]), 1, 0,
                                       &properties, content) != AMQP_STATUS_OK) die("cannot publish");
                sent++;
            }
            confirmed += answer(connection, base);
        }
        base += count;
        free(acked);
        printf("{\"seconds\": %.9f, \"cpu\": %.9f}\n", seconds() - start, cpu() - start_cpu);
        fflush(stdout);
    }
    amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
    amqp_destroy_connection(connection);
    return 0;
}
