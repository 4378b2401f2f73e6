/* proxy_test.c: reads of collection data while there is a journal: which copy is asked, under which
 * id, and what the client sees of it. */
#include "balancer.h"

#define QUERY RECORDS ID "/query?x=1"

static int set_up(void **state)
{
    static const char *const settings[] = {"TRY_TIMEOUT", "0.3", NULL};
    balancer_start(settings);
    return 0;
}

static int tear_down(void **state)
{
    balancer_stop();
    return 0;
}

static void ask_as(const char *path, const char *fields)
{
    char text[1024];
    client_open();
    snprintf(text, sizeof text,
             "POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: 2\r\nConnection: close\r\n\r\n{}",
             path, fields);
    say(text);
    if (!wires_until(bal.loop, heard(NULL)))
        fail_msg("no answer");
}

static void ask(const char *path)
{
    ask_as(path, "");
}

static void behind(const char *instance, uint64_t position)
{
    const char *physical = strcmp(instance, "a") == 0 ? ON_A : ON_B;
    assert_true(copies_copy_set(ID, str_from(instance), physical, position, true));
}

static void test_the_id_in_the_path_is_the_instances_own(void **state)
{
    behind("b", 9);
    ask(QUERY);
    hears("HTTP/1.1 200");
    assert_true(strncmp(bal.a.got, "POST " RECORDS ON_A "/query?x=1 HTTP/1.1\r\n", 91) == 0);
    behind("b", 10);
    behind("a", 9);
    ask(QUERY);
    assert_non_null(strstr(bal.b.got, RECORDS ON_B "/query?x=1 HTTP/1.1\r\n"));
}

static void test_ids_in_any_spelling(void **state)
{
    static const char *const spellings[] = {
        "6F9619FF-8B86-4D01-B42D-00CF4FC964FF", "6f9619ff8b864d01b42d00cf4fc964ff",
        "%36f9619ff-8b86-4d01-b42d-00cf4fc964ff", "urn:uuid:6f9619ff-8b86-4d01-b42d-00cf4fc964ff",
        "%7B6f9619ff-8b86-4d01-b42d-00cf4fc964ff%7D"};
    behind("b", 9);
    for (unsigned i = 0; i < COUNT_OF(spellings); i++) {
        char path[256];
        snprintf(path, sizeof path, RECORDS "%s/query?y=2", spellings[i]);
        ask(path);
        hears("HTTP/1.1 200");
        assert_non_null(strstr(bal.a.got, RECORDS ON_A "/query?y=2 HTTP/1.1\r\n"));
        assert_non_null(strstr(bal.a.got, "\r\n\r\n{}"));
    }
    assert_int_equal(bal.a.requests, COUNT_OF(spellings));
}

static void test_what_is_no_id_reaches_no_server(void **state)
{
    ask(RECORDS "by-name/query");
    hears("HTTP/1.1 400");
    hears("InvalidArgumentError");
    assert_int_equal(bal.a.requests + bal.b.requests, 0);
}

static void test_an_unknown_collection_is_not_found(void **state)
{
    lua("require('lb.journal').look = function(id) copies.looked(id, true) end");
    ask(RECORDS ON_A "/query"); /* a physical id is no id for clients */
    hears("HTTP/1.1 404");
    hears("{\"error\":\"NotFoundError\",\"message\":\"Collection [" ON_A "] does not exists.\"}");
    assert_int_equal(bal.a.requests + bal.b.requests, 0);
}

#define LATER "0b8a1c11-5f0e-4b6e-9a52-3d1c7e0f9a11"

/* A read of a collection that this table lacks is on its way, and its engine has been asked. */
static void ask_for_what_is_not_known(void)
{
    client_open();
    say("POST " RECORDS LATER "/query HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
        "Connection: close\r\n\r\n{}");
    assert_true(wires_until(bal.loop, strcmp(lua("return #looks"), "1") == 0));
    assert_string_equal(lua("return looks[1]"), LATER);
    assert_false(heard(""));
}

static void test_a_collection_that_another_balancer_made_is_looked_up(void **state)
{
    ask_for_what_is_not_known();
    lua("copies.collection_set('" LATER "', 't', 'd', 0)"
        "copies.copy_set('" LATER "', 'a', '" ON_A "', 0, true)"
        "copies.looked('" LATER "', true)");
    assert_true(wires_until(bal.loop, heard(NULL)));
    hears("HTTP/1.1 200");
    assert_non_null(strstr(bal.a.got, RECORDS ON_A "/query HTTP/1.1\r\n"));
    assert_non_null(strstr(bal.a.got, "\r\n\r\n{}"));
}

static void test_a_collection_that_nobody_made_is_not_found(void **state)
{
    ask_for_what_is_not_known();
    lua("copies.looked('" ON_B "', true)"); /* another's */
    lua("copies.looked('" LATER "', true)");
    assert_true(wires_until(bal.loop, heard(NULL)));
    hears("HTTP/1.1 404");
    hears(LATER);
    assert_int_equal(bal.a.requests + bal.b.requests, 0);
}

static void test_a_collection_of_another_database_is_not_found_by_looking_either(void **state)
{
    ask_for_what_is_not_known();
    lua("copies.collection_set('" LATER "', 't', 'e', 0) copies.looked('" LATER "', true)");
    assert_true(wires_until(bal.loop, heard(NULL)));
    hears("HTTP/1.1 404");
}

static void test_nobody_is_told_404_when_looking_failed(void **state)
{
    ask_for_what_is_not_known();
    lua("copies.looked('" LATER "', false)");
    assert_true(wires_until(bal.loop, heard(NULL)));
    hears("HTTP/1.1 503");
    hears("PostgreSQL does not answer");
}

static void test_a_client_that_left_while_its_collection_was_looked_up(void **state)
{
    ask_for_what_is_not_known();
    client_close();
    assert_true(wires_until(bal.loop, session_shared.count == 0));
    lua("copies.looked('" LATER "', true)");
    ask(QUERY);
    hears("HTTP/1.1 200");
}

static void test_a_collection_of_another_database_is_not_found(void **state)
{
    ask("/api/v2/tenants/t/databases/e/collections/" ID "/query");
    hears("HTTP/1.1 404");
    ask("/api/v2/tenants/td/databases/d/collections/" ID "/query");
    hears("HTTP/1.1 404");
    ask("/api/v2/tenants/%74/databases/%64/collections/" ID "/query");
    hears("HTTP/1.1 200");
    assert_int_equal(bal.a.requests + bal.b.requests, 1);
}

static void test_a_copy_that_is_behind_is_not_asked(void **state)
{
    behind("a", 7);
    for (int i = 0; i < 5; i++)
        ask(QUERY);
    assert_int_equal(bal.a.requests, 0);
    assert_int_equal(bal.b.requests, 5);
}

static void test_no_copy_up_to_date_is_said_with_states(void **state)
{
    behind("a", 7);
    copies_copy_drop(ID, STR("b"));
    ask(QUERY);
    hears("HTTP/1.1 503");
    hears("Retry-After: 1");
    hears("no copy of this collection is up to date: a is up, 3 entries behind; b is up, has no "
          "copy");
    assert_int_equal(bal.a.requests + bal.b.requests, 0);
}

static void bring_up_to_date(struct ev_loop *l, ev_timer *w, int revents)
{
    behind("a", 10);
}

static void test_a_read_waits_for_a_copy_that_is_coming(void **state)
{
    ev_timer later;
    behind("a", 7);
    copies_copy_drop(ID, STR("b"));
    ev_timer_init(&later, bring_up_to_date, 0.1, 0);
    ev_timer_start(bal.loop, &later);
    ask(QUERY);
    hears("HTTP/1.1 200");
    assert_int_equal(bal.a.requests, 1);
    assert_int_equal(bal.b.requests, 0);
}

static void test_a_request_may_allow_a_copy_that_is_behind(void **state)
{
    behind("a", 7);
    behind("b", 6);
    ask_as(QUERY, "X-Chromux-Max-Behind: 2\r\n");
    hears("HTTP/1.1 503");
    ask_as(QUERY, "x-chromux-max-behind: 3\r\n");
    hears("HTTP/1.1 200");
    assert_int_equal(bal.a.requests, 1);
    assert_int_equal(bal.b.requests, 0);
}

static void test_a_bad_bound_is_refused_by_name(void **state)
{
    static const char *const bad[] = {"-1", "x", "1.5", "", "1234567890123456", "1, 2"};
    for (unsigned i = 0; i < COUNT_OF(bad); i++) {
        char field[80];
        snprintf(field, sizeof field, "X-Chromux-Max-Behind: %s\r\n", bad[i]);
        ask_as(QUERY, field);
        hears("HTTP/1.1 400");
        hears("X-Chromux-Max-Behind");
    }
    ask_as(QUERY, "X-Chromux-Max-Behind: 1\r\nX-Chromux-Max-Behind: 1\r\n");
    hears("HTTP/1.1 400");
    assert_int_equal(bal.a.requests + bal.b.requests, 0);
}

static void says_lost(struct server *s, const char *id)
{
    strcpy(s->status, "404 Not Found");
    snprintf(s->body, sizeof s->body,
             "{\"error\":\"NotFoundError\",\"message\":\"Collection [%s] does not exists.\"}", id);
}

static void test_a_lost_copy_is_told_and_another_asked(void **state)
{
    says_lost(&bal.a, ON_A);
    behind("b", 9);
    ask_as(QUERY, "X-Chromux-Max-Behind: 1\r\n");
    while (bal.a.requests == 0)
        ask_as(QUERY, "X-Chromux-Max-Behind: 1\r\n");
    hears("HTTP/1.1 200");
    assert_string_equal(lua("return table.concat(lost, ',')"), ID " a");
    assert_null(copies_physical(copies_find(ID), fleet_find(STR("a"))));
    ask_as(QUERY, "X-Chromux-Max-Behind: 1\r\n");
    hears("HTTP/1.1 200");
    assert_int_equal(bal.a.requests, 1);
}

static void test_when_all_copies_are_lost_the_client_is_not_told_404(void **state)
{
    says_lost(&bal.a, ON_A);
    says_lost(&bal.b, ON_B);
    ask(QUERY);
    hears("HTTP/1.1 503");
    hears("no copy of this collection is up to date");
    assert_null(strstr(bal.answer, ON_A));
    assert_null(strstr(bal.answer, ON_B));
    assert_string_equal(lua("table.sort(lost) return table.concat(lost, ',')"), ID " a," ID " b");
}

static void test_another_404_is_the_servers_own(void **state)
{
    behind("b", 9);
    strcpy(bal.a.status, "404 Not Found");
    strcpy(bal.a.body, "{\"error\":\"NotFoundError\",\"message\":\"function not found\"}");
    ask(RECORDS ID "/get");
    hears("HTTP/1.1 404");
    hears("function not found");
    assert_string_equal(lua("return #lost"), "0");
}

static void test_error_texts_show_the_logical_id(void **state)
{
    behind("b", 9);
    strcpy(bal.a.status, "400 Bad Request");
    strcpy(bal.a.body, "{\"message\":\"" ON_A " and again " ON_A "\"}");
    ask(QUERY);
    hears("HTTP/1.1 400");
    hears("{\"message\":\"" ID " and again " ID "\"}");
    assert_string_equal(lua("return #lost"), "0");
}

static void test_reads_wait_for_the_table(void **state)
{
    copies_on = false;
    ask(QUERY);
    hears("HTTP/1.1 503");
    hears("Retry-After: 1");
    client_open();
    say("GET /api/v2/heartbeat HTTP/1.1\r\nHost: x\r\n\r\n");
    hears("HTTP/1.1 200");
}

static void test_without_the_journal_ids_are_the_servers(void **state)
{
    copies_expected = copies_on = false;
    ask(QUERY);
    hears("HTTP/1.1 200");
    assert_non_null(strstr(bal.a.got, RECORDS ID "/query"));
}

/* ---- what the policy allows ---- */

static void load_policy(const char *route)
{
    char dir[] = "/tmp/proxy_test.XXXXXX", path[64];
    struct buf errors;
    assert_non_null(mkdtemp(dir));
    static const char *const files[] = {"route.lua", "failover.lua"};
    const char *const texts[] = {route,
                                 "return {judge = function(s) return s.up and 'up' or 'down' end}"};
    for (unsigned i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        FILE *f = fopen(path, "w");
        assert_non_null(f);
        fputs(texts[i], f);
        fclose(f);
    }
    buf_init(&errors, 65536);
    free(bal.cfg->policy_dir);
    bal.cfg->policy_dir = base_strdup(dir);
    bool loaded = policy_load(bal.cfg, &errors);
    for (unsigned i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        unlink(path);
    }
    rmdir(dir);
    if (!loaded)
        fail_msg("%.*s", (int)buf_len(&errors), buf_data(&errors));
    buf_fini(&errors);
}

static void test_policies_see_how_far_behind_copies_are(void **state)
{
    load_policy("return {route = function(req, nodes)\n"
                "  local least = nodes[1]\n"
                "  for _, n in ipairs(nodes) do if n.behind < least.behind then least = n end end\n"
                "  return least.name, 'least behind: ' .. least.behind\n"
                "end}");
    behind("a", 8);
    behind("b", 9);
    ask_as(QUERY, "X-Chromux-Max-Behind: 5\r\n");
    hears("HTTP/1.1 200");
    assert_int_equal(bal.b.requests, 1);
}

static void test_a_policy_may_allow_a_copy_that_is_behind(void **state)
{
    load_policy("return {route = function(req, nodes)\n"
                "  return nodes[1].name, 'old will do', {max_behind = 2}\n"
                "end}");
    behind("a", 8);
    behind("b", 7);
    ask(QUERY);
    hears("HTTP/1.1 200");
    assert_int_equal(bal.a.requests, 1);
    behind("a", 6); /* named, and too far behind: asked again with b alone */
    behind("b", 9);
    ask(QUERY);
    hears("HTTP/1.1 200");
    assert_int_equal(bal.b.requests, 1);
    behind("b", 6);
    ask(QUERY);
    hears("HTTP/1.1 503");
    hears("no copy of this collection is up to date");
}

static void test_a_policy_that_names_none_is_asked_again_with_more(void **state)
{
    load_policy("return {route = function(req, nodes)\n"
                "  for _, n in ipairs(nodes) do if n.name == 'b' then return 'b' end end\n"
                "  return nil, 'b or nothing', {max_behind = 3}\n"
                "end}");
    behind("b", 7);
    ask(QUERY);
    hears("HTTP/1.1 200");
    assert_int_equal(bal.b.requests, 1);
    behind("b", 6);
    ask(QUERY);
    hears("b or nothing");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(the_id_in_the_path_is_the_instances_own),
        TEST(ids_in_any_spelling),
        TEST(what_is_no_id_reaches_no_server),
        TEST(an_unknown_collection_is_not_found),
        TEST(a_collection_that_another_balancer_made_is_looked_up),
        TEST(a_collection_that_nobody_made_is_not_found),
        TEST(a_collection_of_another_database_is_not_found_by_looking_either),
        TEST(nobody_is_told_404_when_looking_failed),
        TEST(a_client_that_left_while_its_collection_was_looked_up),
        TEST(a_collection_of_another_database_is_not_found),
        TEST(a_copy_that_is_behind_is_not_asked),
        TEST(no_copy_up_to_date_is_said_with_states),
        TEST(a_read_waits_for_a_copy_that_is_coming),
        TEST(a_request_may_allow_a_copy_that_is_behind),
        TEST(a_bad_bound_is_refused_by_name),
        TEST(a_lost_copy_is_told_and_another_asked),
        TEST(when_all_copies_are_lost_the_client_is_not_told_404),
        TEST(another_404_is_the_servers_own),
        TEST(error_texts_show_the_logical_id),
        TEST(reads_wait_for_the_table),
        TEST(without_the_journal_ids_are_the_servers),
        TEST(policies_see_how_far_behind_copies_are),
        TEST(a_policy_may_allow_a_copy_that_is_behind),
        TEST(a_policy_that_names_none_is_asked_again_with_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
