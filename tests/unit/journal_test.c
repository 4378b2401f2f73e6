/* journal_test.c: what Lua is asked and how its answers go out; the memory of bodies. */
#include "journal.h"

#include "balancer.h"
#include "metrics.h"

#define ADD RECORDS ID "/add"

static void begin(const char *const *settings)
{
    struct buf error;
    buf_init(&error, 4096);
    balancer_start(settings);
    assert_true(journal_start(bal.cfg, &error));
    lua("answer = package.loaded['chromux.answer']");
    session_shared.journal = &journal_handler;
    buf_fini(&error);
}

static int set_up(void **state)
{
    begin(NULL);
    return 0;
}

static int tear_down(void **state)
{
    session_kill_all();
    journal_stop();
    session_shared.journal = NULL;
    balancer_stop();
    return 0;
}

static void post(const char *fields, size_t length)
{
    char text[1024];
    snprintf(text, sizeof text, "POST " ADD " HTTP/1.1\r\nHost: x\r\n%sContent-Length: %zu\r\n\r\n",
             fields, length);
    say(text);
}

static bool was_asked(int n)
{
    char count[16];
    snprintf(count, sizeof count, "%d", n);
    return strcmp(lua("return #asked"), count) == 0;
}

#define check_asked(n) assert_true(wires_until(bal.loop, was_asked(n)))

static char *filler(size_t n)
{
    char *out = base_alloc(n);
    memset(out, 'x', n);
    return out;
}

/* ---- what is asked ---- */

static void test_start_gets_settings_and_instances(void **state)
{
    char want[64];
    snprintf(want, sizeof want, "http://127.0.0.1:%d", bal.b.port);
    assert_string_equal(lua("return settings.instances[2].url"), want);
    assert_string_equal(lua("return settings.instances[1].name .. settings.instances[1].role"),
                        "aprimary");
    assert_string_equal(lua("return tostring(settings.REQUEST_TIMEOUT)"), "30");
    assert_string_equal(lua("return tostring(settings.DATABASE_URL)"), "nil");
}

static void test_a_reload_is_told(void **state)
{
    struct config *was = bal.cfg;
    bal.cfg = config_of((const char *const[]){"REQUEST_TIMEOUT", "7", NULL});
    session_shared.cfg = bal.cfg;
    pool_reload(bal.cfg);
    proxy_reload(bal.cfg);
    journal_reload(bal.cfg);
    config_free(was);
    assert_string_equal(lua("return tostring(settings.REQUEST_TIMEOUT)"), "7");
}

static void test_a_write_is_asked_with_all_its_parts(void **state)
{
    say("POST /api/v2/tenants/t%20t/databases/d%C3%A9/collections/"
        "6F9619FF8B864D01B42D00CF4FC964FF/add?a=1&b HTTP/1.1\r\nHost: x\r\n"
        "Content-Type: application/json\r\nIdempotency-Key: k-1\r\nX-Chromux-Token: tok\r\n"
        "X-Request-Id: r1\r\nX-Chromux-Max-Behind: 7\r\nContent-Length: 4\r\n\r\n{\"\xc3\xa9");
    check_asked(1);
    assert_string_equal(
        lua("local r = asked[1]\n"
            "return table.concat({r.method, r.action, r.class, tostring(r.reads), r.tenant,\n"
            "  r.database, r.collection, tostring(r.by_name), r.target, r.query, r.type, r.key,\n"
            "  r.token, r.id, r.body, r.max_behind, type(r.ticket)}, '|')"),
        "POST|add|write|false|t t|d\xc3\xa9|" ID
        "|false|/api/v2/tenants/t%20t/databases/d%C3%A9/collections/"
        "6F9619FF8B864D01B42D00CF4FC964FF/add?a=1&b|a=1&b|application/"
        "json|k-1|tok|r1|{\"\xc3\xa9|7|"
        "number");
    double deadline = strtod(lua("return string.format('%.3f', asked[1].deadline)"), NULL);
    assert_true(deadline > ev_time() + 25 && deadline < ev_time() + 31);
}

static void test_a_catalogue_read_is_asked_too(void **state)
{
    say("GET /api/v2/tenants/t/databases/d/collections/a%2Fb HTTP/1.1\r\nHost: x\r\n\r\n");
    check_asked(1);
    assert_string_equal(lua("local r = asked[1]\n"
                            "return table.concat({r.method, r.action, r.class, tostring(r.reads),\n"
                            "  r.collection, tostring(r.by_name), r.query, r.type, r.body,\n"
                            "  tostring(r.key), tostring(r.max_behind)}, '|')"),
                        "GET|get_collection|catalog|true|a/b|true||||nil|nil");
}

static void test_reads_of_records_are_not_asked(void **state)
{
    say("POST " RECORDS ID "/query HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}");
    hears("HTTP/1.1 200");
    assert_true(was_asked(0));
}

static void test_a_large_body_arrives_whole(void **state)
{
    enum { N = 3000000 };
    char *body = filler(N);
    body[0] = 'a';
    body[N - 1] = 'z';
    post("", N);
    assert_true(client_sends(body, N));
    check_asked(1);
    assert_string_equal(lua("local b = asked[1].body return b:sub(1, 1) .. #b .. b:sub(-1)"),
                        "a3000000z");
    free(body);
}

static void test_a_chunked_body_arrives_whole(void **state)
{
    enum { N = 2500000 };
    char *body = filler(N);
    say("POST " ADD " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    say("2625A0\r\n"); /* N */
    assert_true(client_sends(body, N));
    say("\r\n3\r\nend\r\n0\r\n\r\n");
    check_asked(1);
    assert_string_equal(lua("local b = asked[1].body return #b .. b:sub(-3)"), "2500003end");
    free(body);
}

static void test_a_body_over_the_limit_is_refused(void **state)
{
    char *body = filler(200000);
    tear_down(NULL);
    begin((const char *const[]){"MAX_BODY_BYTES", "100k", NULL});
    say("POST " ADD " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n30D40\r\n");
    (void)client_sends(body, 200000);
    hears("HTTP/1.1 413");
    client_open();
    post("", 102401);
    hears("HTTP/1.1 413");
    assert_true(was_asked(0));
    free(body);
}

static void test_what_the_head_must_not_say(void **state)
{
    post("Content-Encoding: gzip\r\n", 1);
    hears("HTTP/1.1 415");
    hears("Content-Encoding must be identity");
    client_open();
    post("Idempotency-Key: a b\r\n", 1);
    hears("HTTP/1.1 400");
    hears("Idempotency-Key");
    client_open();
    post("X-Chromux-Max-Behind: many\r\n", 1);
    hears("HTTP/1.1 400");
    hears("X-Chromux-Max-Behind");
    client_open();
    post("Content-Encoding: identity\r\n", 1);
    say("x");
    check_asked(1);
}

static void test_while_the_table_is_loaded_nothing_is_asked(void **state)
{
    copies_on = false;
    post("", 0);
    hears("HTTP/1.1 503");
    hears("Retry-After: 1");
    assert_true(was_asked(0));
}

/* ---- answers ---- */

static void test_an_answer_is_sent_as_lua_gives_it(void **state)
{
    post("", 1);
    say("x");
    check_asked(1);
    assert_string_equal(
        lua("return tostring(answer.send(asked[1].ticket, 201, 'application/json',\n"
            "  '{\"n\":1}', 'X-Extra: 1\\r\\n', 'b'))"),
        "true");
    hears("HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 7\r\n"
          "X-Extra: 1\r\n");
    hears("X-Chromux-Instance: b\r\n");
    hears("\r\n\r\n{\"n\":1}");
    assert_string_equal(lua("return tostring(answer.send(asked[1].ticket, 201, '', ''))"), "false");
    post("", 1); /* the connection lives on */
    say("y");
    check_asked(2);
    assert_string_equal(lua("return asked[2].body"), "y");
}

static void test_an_empty_answer_has_a_length(void **state)
{
    post("", 0);
    check_asked(1);
    lua("answer.send(asked[1].ticket, 404, '', '')");
    hears("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n");
    hears("X-Chromux-Instance: -\r\n");
}

static void test_answers_given_within_submit_to_a_pipeline(void **state)
{
    lua("function on_submit(r) answer.send(r.ticket, 200, 'text/plain', 'got ' .. r.body) end");
    char text[2048] = "";
    for (int i = 0; i < 5; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text),
                 "POST " ADD " HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n%d", i);
    say(text);
    hears("got 4");
    hears("got 0");
    assert_true(was_asked(5));
}

static void test_head_gets_no_body(void **state)
{
    say("HEAD /api/v2/tenants/t/databases/d/collections HTTP/1.1\r\nHost: x\r\n"
        "Connection: close\r\n\r\n");
    check_asked(1);
    lua("answer.send(asked[1].ticket, 200, 'application/json', '[1]')");
    hears(NULL);
    assert_non_null(strstr(bal.answer, "Content-Length: 3\r\n"));
    assert_null(strstr(bal.answer, "[1]"));
}

static void test_refusals_have_chromas_shape(void **state)
{
    post("", 0);
    check_asked(1);
    lua("answer.refuse(asked[1].ticket, 'not_applied', 'entry 7 is kept', nil)");
    hears("HTTP/1.1 503");
    hears("{\"error\":\"ChromaError\",\"message\":\"entry 7 is kept\"}");
    assert_null(strstr(bal.answer, "Retry-After"));
    client_open();
    post("", 0);
    check_asked(2);
    lua("answer.refuse(asked[2].ticket, 'journal_away', 'not now', 5)");
    hears("HTTP/1.1 503");
    hears("Retry-After: 5\r\n");
    client_open();
    post("", 0);
    check_asked(3);
    lua("answer.refuse(asked[3].ticket, 'outcome_unknown', 'who knows')");
    hears("HTTP/1.1 504");
}

static void test_wrong_answers_are_errors(void **state)
{
    static const char *const wrong[] = {
        "answer.send(1, 99, '', '')",       "answer.send(1, 204, '', '')",
        "answer.send('x', 200, '', '')",    "answer.refuse(1, 'no_such_reason', 'text')",
        "answer.refuse(1, 'done', 'text')", "answer.refuse(1, 'journal_away', 'text', -1)"};
    for (unsigned i = 0; i < COUNT_OF(wrong); i++) {
        char chunk[160];
        snprintf(chunk, sizeof chunk, "return tostring(pcall(function() %s end))", wrong[i]);
        assert_string_equal(lua(chunk), "false");
    }
    assert_string_equal(lua("return tostring(answer.send(0, 200, '', ''))"), "false");
    assert_string_equal(lua("return tostring(answer.send(2^60, 200, '', ''))"), "false");
    assert_string_equal(lua("return tostring(answer.send(-1, 200, '', ''))"), "false");
}

static void test_a_client_that_goes_is_told(void **state)
{
    post("", 0);
    check_asked(1);
    client_close();
    assert_true(wires_until(bal.loop, strcmp(lua("return #gone"), "1") == 0));
    assert_string_equal(lua("return tostring(gone[1] == asked[1].ticket)"), "true");
    assert_string_equal(lua("return tostring(answer.send(asked[1].ticket, 200, '', ''))"), "false");
    client_open();
    post("", 5); /* one that was not asked yet is not told of */
    say("x");
    client_close();
    wires_settle(bal.loop);
    assert_string_equal(lua("return #gone"), "1");
}

static void test_a_ticket_is_used_once(void **state)
{
    lua("function on_submit(r) answer.send(r.ticket, 200, '', '') end");
    for (int i = 0; i < 3; i++) {
        client_open();
        post("", 0);
        hears("HTTP/1.1 200");
    }
    assert_string_equal(lua("local t = {} for _, r in ipairs(asked) do t[r.ticket] = true end\n"
                            "local n = 0 for _ in pairs(t) do n = n + 1 end return n"),
                        "3");
}

static void test_an_engine_that_fails_leaves_the_outcome_open(void **state)
{
    lua("function on_submit() error('broken') end");
    post("", 0);
    hears("HTTP/1.1 504");
    hears("whether this write was kept is not known");
}

static void test_an_engine_that_is_silent_is_not_waited_for(void **state)
{
    tear_down(NULL);
    begin((const char *const[]){"REQUEST_TIMEOUT", "0.1", NULL});
    post("", 0);
    hears("HTTP/1.1 504"); /* 5 s later */
    assert_string_equal(lua("return tostring(gone[1] == asked[1].ticket)"), "true");
}

static void test_a_body_that_does_not_come_in_time(void **state)
{
    tear_down(NULL);
    begin((const char *const[]){"REQUEST_TIMEOUT", "0.1", NULL});
    post("", 10);
    say("x");
    hears("HTTP/1.1 408");
    assert_true(was_asked(0));
}

/* ---- memory ---- */

static int waiting(void)
{
    return (int)metrics_gauge[GAUGE_JOURNAL_WAITING];
}

static void test_a_body_larger_than_all_memory_is_refused(void **state)
{
    char *body = filler(200000);
    tear_down(NULL);
    begin((const char *const[]){"JOURNAL_MEMORY_BYTES", "100k", NULL});
    post("", 102401);
    hears("HTTP/1.1 413");
    hears("JOURNAL_MEMORY_BYTES");
    client_open();
    say("POST " ADD " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n30D40\r\n");
    (void)client_sends(body, 200000);
    hears("HTTP/1.1 413");
    hears("JOURNAL_MEMORY_BYTES");
    free(body);
    assert_int_equal(metrics_gauge[GAUGE_JOURNAL_BYTES], 0);
}

static void test_bodies_wait_in_the_socket_for_memory(void **state)
{
    enum { N = 8000000 };
    char *body = filler(N);
    tear_down(NULL);
    begin((const char *const[]){"JOURNAL_MEMORY_BYTES", "10m", NULL});
    post("", N);
    assert_true(client_sends(body, N));
    check_asked(1);
    int first = bal.client;
    bal.client = -1;
    client_open();
    post("", N);
    assert_false(client_sends(body, N)); /* the socket is full */
    assert_int_equal(waiting(), 1);
    assert_true(was_asked(1));
    assert_int_equal(metrics_gauge[GAUGE_JOURNAL_BYTES], N);
    lua("answer.send(asked[1].ticket, 201, '', '')");
    (void)client_sends(body, N); /* what is missing, and more than that */
    check_asked(2);
    assert_string_equal(lua("return #asked[2].body"), "8000000");
    assert_int_equal(waiting(), 0);
    close(first);
    free(body);
}

static void test_a_small_body_does_not_overtake(void **state)
{
    char *body = filler(8000000);
    tear_down(NULL);
    begin((const char *const[]){"JOURNAL_MEMORY_BYTES", "10m", NULL});
    post("", 8000000);
    assert_true(client_sends(body, 8000000));
    check_asked(1);
    int first = bal.client;
    bal.client = -1;
    client_open();
    post("", 3000000);
    wires_settle(bal.loop);
    int second = bal.client;
    bal.client = -1;
    client_open();
    post("", 1);
    say("x");
    wires_settle(bal.loop);
    assert_int_equal(waiting(), 2);
    assert_true(was_asked(1));
    close(second); /* it leaves the queue, and what fits behind it goes on */
    check_asked(2);
    assert_int_equal(waiting(), 0);
    close(first);
    free(body);
}

static void test_unfinished_bodies_do_not_block_each_other_for_ever(void **state)
{
    enum { N = 1100000 }; /* more than a step, so each needs a second one */
    static const char head[] =
        "POST " ADD " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n10C8E0\r\n";
    char *body = filler(N);
    tear_down(NULL);
    begin((const char *const[]){"JOURNAL_MEMORY_BYTES", "2m", NULL});
    say(head);
    int first = bal.client;
    wires_settle(bal.loop);
    bal.client = -1;
    client_open();
    say(head);
    (void)client_sends(body, N);
    assert_int_equal(waiting(), 1); /* both hold a step, this one waits for another */
    int second = bal.client;
    bal.client = first;
    bal.answer_n = 0;
    (void)client_sends(body, N);
    hears("HTTP/1.1 503");
    hears("JOURNAL_MEMORY_BYTES");
    client_close();
    bal.client = second;
    say("\r\n0\r\n\r\n");
    check_asked(1);
    assert_string_equal(lua("return #asked[1].body"), "1100000");
    free(body);
}

static void test_memory_comes_back_when_clients_go(void **state)
{
    char *body = filler(300000);
    post("", 300001);
    assert_true(client_sends(body, 300000));
    assert_int_equal(metrics_gauge[GAUGE_JOURNAL_BYTES], 300001);
    client_close();
    wires_settle(bal.loop);
    assert_int_equal(metrics_gauge[GAUGE_JOURNAL_BYTES], 0);
    free(body);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(start_gets_settings_and_instances),
        TEST(a_reload_is_told),
        TEST(a_write_is_asked_with_all_its_parts),
        TEST(a_catalogue_read_is_asked_too),
        TEST(reads_of_records_are_not_asked),
        TEST(a_large_body_arrives_whole),
        TEST(a_chunked_body_arrives_whole),
        TEST(a_body_over_the_limit_is_refused),
        TEST(what_the_head_must_not_say),
        TEST(while_the_table_is_loaded_nothing_is_asked),
        TEST(an_answer_is_sent_as_lua_gives_it),
        TEST(an_empty_answer_has_a_length),
        TEST(answers_given_within_submit_to_a_pipeline),
        TEST(head_gets_no_body),
        TEST(refusals_have_chromas_shape),
        TEST(wrong_answers_are_errors),
        TEST(a_client_that_goes_is_told),
        TEST(a_ticket_is_used_once),
        TEST(an_engine_that_fails_leaves_the_outcome_open),
        TEST(an_engine_that_is_silent_is_not_waited_for),
        TEST(a_body_that_does_not_come_in_time),
        TEST(a_body_larger_than_all_memory_is_refused),
        TEST(bodies_wait_in_the_socket_for_memory),
        TEST(a_small_body_does_not_overtake),
        TEST(unfinished_bodies_do_not_block_each_other_for_ever),
        TEST(memory_comes_back_when_clients_go),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
