/* access_test.c: every line can be taken apart again, whatever the request was; files can be
 * rotated; a log that nobody reads costs lines, and never time. */
#include "access.h"

#include "log.h"
#include "metrics.h"
#include "script.h"
#include "wires.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cmocka.h>

enum { FIELDS_MAX = 40, TEXT_MAX = 8 << 20 };

static struct ev_loop *loop;
static char folder[64], path[96], other[96];

static int start(void **state)
{
    log_set_fd(-1);
    loop = ev_loop_new(EVFLAG_AUTO);
    snprintf(folder, sizeof folder, "/tmp/access_test.XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/access.log", folder);
    snprintf(other, sizeof other, "%s/access.log.1", folder);
    return 0;
}

static int stop(void **state)
{
    access_stop();
    int left = ev_run(loop, EVRUN_NOWAIT); /* nothing of it is watched any more */
    ev_loop_destroy(loop);
    unlink(path);
    unlink(other);
    rmdir(folder);
    return left;
}

static struct access_record usual(void)
{
    return (struct access_record){.client = STR("10.1.2.3"),
                                  .method = STR("POST"),
                                  .path = STR("/api/v2/x"),
                                  .action = STR("query"),
                                  .id = STR("id-1"),
                                  .instance = STR("primary"),
                                  .class_name = "read",
                                  .status = 200,
                                  .attempts = 2,
                                  .reused = true,
                                  .bytes_in = 123,
                                  .bytes_out = 18446744073709551615u,
                                  .start = 1000,
                                  .head = 1000.001,
                                  .queued = 0.25,
                                  .picked = 1000.5,
                                  .connected = 1000.502,
                                  .first = 1000.602,
                                  .end = 1001,
                                  .reason = END_DONE,
                                  .detail = "next in turn"};
}

static char *content(const char *of)
{
    char *text = base_alloc(TEXT_MAX);
    FILE *f = fopen(of, "r");
    assert_non_null(f);
    size_t n = fread(text, 1, TEXT_MAX - 1, f);
    assert_true(n < TEXT_MAX - 1);
    text[n] = 0;
    fclose(f);
    return text;
}

static unsigned count_lines(const char *text)
{
    unsigned n = 0;
    for (; *text; text++)
        n += *text == '\n';
    return n;
}

/* ---- taking lines apart -----------------------------------------------------------------------
 */

struct line {
    unsigned n;
    char *name[FIELDS_MAX], *value[FIELDS_MAX];
    char text[20000];
};

static const char *names[] = {"time",     "id",        "client", "method",   "path",
                              "status",   "class",     "action", "instance", "attempts",
                              "bytes_in", "bytes_out", "tr",     "tq",       "tc",
                              "tf",       "ta",        "reused", "end",      "reason"};

/* key=value with single spaces between; a value that has a space, a quote, '=' or a back-slash is
 * quoted, with these and control bytes escaped. Anything else fails. */
static void split_kv(const char *from, size_t n, struct line *l)
{
    size_t o = 0, i = 0;
    l->n = 0;
    while (i < n) {
        assert_true(l->n < FIELDS_MAX);
        l->name[l->n] = l->text + o;
        while (i < n && from[i] != '=') {
            assert_true((from[i] >= 'a' && from[i] <= 'z') || from[i] == '_');
            l->text[o++] = from[i++];
        }
        assert_true(i++ < n && o > 0);
        l->text[o++] = 0;
        l->value[l->n++] = l->text + o;
        if (i < n && from[i] == '"') {
            for (i++; i < n && from[i] != '"'; i++) {
                assert_true((unsigned char)from[i] >= ' ');
                if (from[i] == '\\' && from[i + 1] == 'x') {
                    unsigned c;
                    assert_int_equal(sscanf(from + i + 2, "%2x", &c), 1);
                    l->text[o++] = c ? (char)c : '?';
                    i += 3;
                } else {
                    i += from[i] == '\\';
                    assert_true(i < n);
                    l->text[o++] = from[i];
                }
            }
            assert_true(i++ < n);
        } else {
            for (; i < n && from[i] != ' '; i++) {
                assert_true((unsigned char)from[i] > ' ' && !strchr("\"\\=", from[i]));
                l->text[o++] = from[i];
            }
        }
        l->text[o++] = 0;
        if (i < n)
            assert_int_equal(from[i++], ' ');
    }
}

/* By lua-cjson, which is strict. */
static void split_json(lua_State *L, const char *from, size_t n, struct line *l)
{
    struct buf error;
    size_t o = 0;
    buf_init(&error, 4096);
    lua_getglobal(L, "require");
    lua_pushstring(L, "cjson");
    assert_true(script_call(L, 1, 1, false, &error));
    lua_getfield(L, -1, "decode");
    lua_pushlstring(L, from, n);
    if (!script_call(L, 1, 1, false, &error))
        fail_msg("%.*s: %.*s", (int)buf_len(&error), buf_data(&error), (int)n, from);
    l->n = 0;
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        lua_getfield(L, -1, names[i]);
        l->name[l->n] = (char *)(uintptr_t)names[i];
        l->value[l->n++] = l->text + o;
        const char *text = lua_isboolean(L, -1)    ? (lua_toboolean(L, -1) ? "yes" : "no")
                           : lua_isuserdata(L, -1) ? "-"
                                                   : lua_tostring(L, -1);
        assert_non_null(text);
        o += (size_t)snprintf(l->text + o, sizeof l->text - o, "%s", text) + 1;
        assert_true(o < sizeof l->text);
        lua_pop(L, 1);
    }
    lua_settop(L, 0);
    buf_fini(&error);
}

static const char *value_of(const struct line *l, const char *name)
{
    for (unsigned i = 0; i < l->n; i++)
        if (strcmp(l->name[i], name) == 0)
            return l->value[i];
    fail_msg("no %s", name);
    return NULL;
}

/* Logs it and takes the line apart; *raw, if asked for, is its length. */
static void logged(const struct access_record *r, bool json, struct line *l, size_t *raw)
{
    unlink(path);
    assert_true(access_start(loop, path, json));
    assert_true(access_on());
    access_log(r);
    (void)ev_run(loop, EVRUN_NOWAIT);
    char *text = content(path);
    assert_int_equal(count_lines(text), 1);
    size_t n = strlen(text);
    assert_int_equal(text[n - 1], '\n');
    if (raw)
        *raw = n;
    if (json) {
        lua_State *L = script_new(0);
        split_json(L, text, n - 1, l);
        script_free(L);
    } else {
        split_kv(text, n - 1, l);
    }
    access_stop();
    free(text);
}

static void a_line_has_every_field_once(void **state)
{
    for (int json = 0; json < 2; json++) {
        struct access_record r = usual();
        static struct line l;
        logged(&r, json, &l, NULL);
        assert_int_equal(l.n, COUNT_OF(names));
        for (unsigned i = 0; i < l.n; i++)
            assert_string_equal(l.name[i], names[i]);
        assert_string_equal(value_of(&l, "client"), "10.1.2.3");
        assert_string_equal(value_of(&l, "method"), "POST");
        assert_string_equal(value_of(&l, "path"), "/api/v2/x");
        assert_string_equal(value_of(&l, "status"), "200");
        assert_string_equal(value_of(&l, "class"), "read");
        assert_string_equal(value_of(&l, "instance"), "primary");
        assert_string_equal(value_of(&l, "attempts"), "2");
        assert_string_equal(value_of(&l, "bytes_in"), "123");
        assert_string_equal(value_of(&l, "reused"), "yes");
        assert_string_equal(value_of(&l, "end"), "done");
        assert_string_equal(value_of(&l, "reason"), "next in turn");
        assert_int_equal(strlen(value_of(&l, "time")), 24);
        /* Milliseconds: head, queue, connect, first byte, all. */
        static const char *const times[][2] = {
            {"tr", "1"}, {"tq", "250"}, {"tc", "2"}, {"tf", "100"}, {"ta", "1000"}};
        for (size_t i = 0; i < COUNT_OF(times); i++) {
            double is = atof(value_of(&l, times[i][0])), want = atof(times[i][1]);
            assert_true(is > want - 0.01 && is < want + 0.01);
        }
        if (!json)
            assert_string_equal(value_of(&l, "bytes_out"), "18446744073709551615");
    }
}

/* A request that never got far: no head, no instance, no try. */
static void what_never_happened_is_a_dash_or_null(void **state)
{
    for (int json = 0; json < 2; json++) {
        struct access_record r = {.client = STR("::1"),
                                  .method = STR("-"),
                                  .id = STR("x"),
                                  .class_name = "-",
                                  .action = STR("-"),
                                  .instance = STR("-"),
                                  .status = 408,
                                  .start = 5,
                                  .end = 15,
                                  .reason = END_CLIENT_SLOW_HEAD,
                                  .detail = ""};
        static struct line l;
        static const char *const never[] = {"tr", "tq", "tc", "tf"};
        logged(&r, json, &l, NULL);
        for (size_t i = 0; i < COUNT_OF(never); i++)
            assert_string_equal(value_of(&l, never[i]), "-");
        assert_string_equal(value_of(&l, "path"), json ? "" : "-");
        assert_string_equal(value_of(&l, "end"), "client_slow_head");
        assert_true(atof(value_of(&l, "ta")) == 10000);
    }
}

/* Paths and fields are the client's: they must not make a line or a field of their own. */
static void hostile_text_stays_one_value(void **state)
{
    static const struct str rows[] = {
        {"/a b", 4},
        {"/\"", 2},
        {"/\\", 2},
        {"/\\\"", 3},
        {"/x status=200 end=done", 22},
        {"/x\" status=\"200", 15},
        {"/x\",\"status\":200,\"y\":\"", 22},
        {"/a\nb\r\nc", 7},
        {"/a\x1b[2J\x7f\x01", 8},
        {"/a=b", 4},
        {"=", 1},
        {"\"", 1},
        {"/%0a", 4},
        {"/a\tb", 4},
    };
    for (int json = 0; json < 2; json++)
        for (size_t i = 0; i < COUNT_OF(rows); i++) {
            struct access_record r = usual();
            static struct line l;
            char want[64];
            snprintf(want, sizeof want, "%.*s", (int)rows[i].n, rows[i].p);
            r.path = r.id = r.client = r.action = rows[i];
            r.detail = want;
            logged(&r, json, &l, NULL);
            assert_int_equal(l.n, COUNT_OF(names));
            assert_string_equal(value_of(&l, "path"), want);
            assert_string_equal(value_of(&l, "id"), want);
            assert_string_equal(value_of(&l, "reason"), want);
            assert_string_equal(value_of(&l, "status"), "200");
        }
}

static void any_byte_leaves_the_line_whole(void **state)
{
    char bytes[256];
    for (unsigned i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)i;
    for (int json = 0; json < 2; json++)
        for (unsigned from = 0; from < 256; from += 32) {
            struct access_record r = usual();
            static struct line l;
            r.path = (struct str){bytes + from, 32};
            logged(&r, json, &l, NULL);
            assert_int_equal(l.n, COUNT_OF(names));
            assert_string_equal(value_of(&l, "status"), "200");
            assert_string_equal(value_of(&l, "reason"), "next in turn");
        }
}

static void long_text_is_cut(void **state)
{
    static char path_text[100000];
    static const char fill[] = {'a', '"', '\x01', '\xff'};
    for (int json = 0; json < 2; json++)
        for (size_t i = 0; i < sizeof fill; i++) {
            struct access_record r = usual();
            static struct line l;
            size_t n;
            memset(path_text, fill[i], sizeof path_text);
            r.path = (struct str){path_text, sizeof path_text};
            logged(&r, json, &l, &n);
            assert_true(n < 16384);
            assert_int_equal(l.n, COUNT_OF(names));
            assert_string_equal(value_of(&l, "end"), "done");
        }
}

/* ---- files ------------------------------------------------------------------------------------
 */

static void off_writes_nothing(void **state)
{
    struct access_record r = usual();
    assert_true(access_start(loop, "off", false));
    assert_false(access_on());
    access_log(&r);
    assert_int_equal(ev_run(loop, EVRUN_NOWAIT), 0);
}

static void a_folder_that_is_not_there_is_told(void **state)
{
    assert_false(access_start(loop, "/nonexistent/access.log", false));
    assert_int_equal(errno, ENOENT);
    assert_false(access_on());
}

static void lines_come_with_the_turn_and_the_rest_at_the_stop(void **state)
{
    struct access_record r = usual();
    assert_true(access_start(loop, path, false));
    for (int i = 0; i < 100; i++)
        access_log(&r);
    (void)ev_run(loop, EVRUN_NOWAIT);
    char *text = content(path);
    assert_int_equal(count_lines(text), 100);
    free(text);
    access_log(&r);
    access_stop();
    text = content(path);
    assert_int_equal(count_lines(text), 101);
    free(text);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07, 0); /* paths are nobody else's business */
}

static void a_rotated_file_is_followed_by_a_new_one(void **state)
{
    struct access_record r = usual();
    assert_true(access_start(loop, path, false));
    access_log(&r);
    assert_int_equal(ev_run(loop, EVRUN_NOWAIT), 0);
    access_log(&r); /* not yet written when the file moves: belongs to the old one */
    assert_int_equal(rename(path, other), 0);
    access_reopen();
    access_log(&r);
    (void)ev_run(loop, EVRUN_NOWAIT);
    char *was = content(other), *is = content(path);
    assert_int_equal(count_lines(was), 2);
    assert_int_equal(count_lines(is), 1);
    free(was);
    free(is);
    access_reopen(); /* without a rotation: goes on behind what is there */
    access_log(&r);
    (void)ev_run(loop, EVRUN_NOWAIT);
    is = content(path);
    assert_int_equal(count_lines(is), 2);
    free(is);
}

static void the_old_file_stays_when_no_new_one_can_be_made(void **state)
{
    struct access_record r = usual();
    assert_true(access_start(loop, path, false));
    assert_int_equal(rename(path, other), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    access_reopen();
    assert_true(access_on());
    access_log(&r);
    (void)ev_run(loop, EVRUN_NOWAIT);
    char *text = content(other);
    assert_int_equal(count_lines(text), 1);
    free(text);
    rmdir(path);
}

/* ---- readers that are slow --------------------------------------------------------------------
 */

/* A pipe that is full and not read: what waits in memory is bounded, what is lost is counted, no
 * turn of the loop waits; once somebody reads, all that was not lost comes, in whole lines. */
static void a_stuck_reader_costs_lines_and_no_time(void **state)
{
    enum { MANY = 20000 };
    struct access_record r = usual();
    assert_int_equal(mkfifo(path, 0600), 0);
    int reader = open(path, O_RDONLY | O_NONBLOCK);
    assert_true(reader >= 0);
    assert_true(access_start(loop, path, false));
    uint64_t before = metrics_counter[METRIC_LOG_LINES_LOST];
    double began = ev_time();
    char id[16];
    r.id.p = id;
    alarm(60); /* a write that blocks would block for ever */
    for (int i = 0; i < MANY; i++) {
        r.id.n = (size_t)snprintf(id, sizeof id, "%d", i);
        access_log(&r);
        if (i % 10 == 0)
            (void)ev_run(loop, EVRUN_NOWAIT);
    }
    assert_true(ev_time() - began < 30);
    uint64_t lost = metrics_counter[METRIC_LOG_LINES_LOST] - before;
    assert_true(lost > 0 && lost < MANY);

    char *text = base_alloc(TEXT_MAX);
    size_t n = 0;
    unsigned want = MANY - (unsigned)lost, lines = 0;
    (void)wires_until(loop, ({
                          ssize_t got;
                          while ((got = read(reader, text + n, TEXT_MAX - 1 - n)) > 0)
                              n += (size_t)got;
                          text[n] = 0;
                          lines = count_lines(text);
                          lines >= want;
                      }));
    alarm(0);
    assert_int_equal(lines, want);
    assert_int_equal(text[n - 1], '\n');
    int last = -1;
    for (char *at = text, *end; *at; at = end + 1) {
        static struct line l;
        end = strchr(at, '\n');
        split_kv(at, (size_t)(end - at), &l);
        assert_int_equal(l.n, COUNT_OF(names));
        int is = atoi(value_of(&l, "id"));
        assert_true(is > last); /* in order, and none twice */
        last = is;
    }
    /* And then it goes on as before. */
    access_log(&r);
    (void)ev_run(loop, EVRUN_NOWAIT);
    assert_true(read(reader, text, TEXT_MAX) > 0);
    free(text);
    access_stop();
    close(reader);
}

static void a_reader_that_went_away_is_survived(void **state)
{
    struct access_record r = usual();
    signal(SIGPIPE, SIG_IGN); /* as stream_start does */
    assert_int_equal(mkfifo(path, 0600), 0);
    int reader = open(path, O_RDONLY | O_NONBLOCK);
    assert_true(access_start(loop, path, false));
    close(reader);
    for (int i = 0; i < 5000; i++) {
        access_log(&r);
        (void)ev_run(loop, EVRUN_NOWAIT);
    }
    reader = open(path, O_RDONLY | O_NONBLOCK);
    char block[65536];
    assert_true(wires_until(loop, read(reader, block, sizeof block) > 0)); /* a new one gets them */
    access_stop();
    close(reader);
}

/* A pipe without a reader must not hang the start, nor what is rotated into one the service. */
static void no_pipe_is_waited_for(void **state)
{
    assert_int_equal(mkfifo(other, 0600), 0);
    assert_false(access_start(loop, other, false));
    access_stop();
    assert_true(access_start(loop, path, false));
    assert_int_equal(rename(other, path), 0);
    access_reopen();
    assert_true(access_on());
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(a_line_has_every_field_once),
        TEST(what_never_happened_is_a_dash_or_null),
        TEST(hostile_text_stays_one_value),
        TEST(any_byte_leaves_the_line_whole),
        TEST(long_text_is_cut),
        TEST(off_writes_nothing),
        TEST(a_folder_that_is_not_there_is_told),
        TEST(lines_come_with_the_turn_and_the_rest_at_the_stop),
        TEST(a_rotated_file_is_followed_by_a_new_one),
        TEST(the_old_file_stays_when_no_new_one_can_be_made),
        TEST(no_pipe_is_waited_for),
        TEST(a_stuck_reader_costs_lines_and_no_time),
        TEST(a_reader_that_went_away_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
