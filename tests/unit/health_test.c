/* health_test.c: sequences of signs, and what they make of an instance or a collection, judged by
 * the failover policy that is shipped. Runs in the folder of the repository. */
#include "health.h"

#include "log.h"
#include "policy.h"
#include "stream.h"

#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#define ID "11111111-1111-1111-1111-111111111111"

static struct ev_loop *loop;
static struct config *cfg;
static struct node *node;
static struct collection_state *collection;

/* Every change since the start of the test: "up>suspect: refused; …". */
static char changes[1024];

static void on_health(struct node *n, struct collection_state *c, enum node_health was,
                      const char *reason)
{
    size_t at = strlen(changes);
    snprintf(changes + at, sizeof changes - at, "%s%s%s>%s: %s", at ? "; " : "",
             c ? "collection " : "", fleet_health_name(was),
             fleet_health_name(c ? c->health : n->health), reason);
}

static void use(const char *failure_threshold, const char *success_threshold)
{
    struct config_raws raws = {0};
    struct buf errors;
    buf_init(&errors, 65536);
    config_raws_add(&raws, "CHROMA_INSTANCES", "a=http://127.0.0.1:1;b=http://127.0.0.1:2",
                    CONFIG_TEXT, "--set");
    config_raws_add(&raws, "POLICY_DIR", "policies", CONFIG_TEXT, "--set");
    config_raws_add(&raws, "POLICY_TIME", "10", CONFIG_TEXT, "--set"); /* machines are busy */
    config_raws_add(&raws, "FAILURE_THRESHOLD", failure_threshold, CONFIG_TEXT, "--set");
    config_raws_add(&raws, "SUCCESS_THRESHOLD", success_threshold, CONFIG_TEXT, "--set");
    struct config *was = cfg;
    cfg = config_build(&raws, &errors);
    if (!cfg || !policy_load(cfg, &errors))
        fail_msg("%.*s", (int)buf_len(&errors), buf_data(&errors));
    if (was)
        config_free(was);
    config_raws_fini(&raws);
    buf_fini(&errors);
}

static int once(void **state)
{
    log_set_fd(-1);
    loop = ev_loop_new(EVFLAG_AUTO);
    stream_start(loop);
    fleet_observe(on_health);
    return access("policies/failover.lua", R_OK);
}

static int finish(void **state)
{
    policy_unload();
    config_free(cfg);
    ev_loop_destroy(loop);
    return 0;
}

/* An instance that is up and has made no trouble. */
static int start(void **state)
{
    use("3", "2");
    fleet_configure(cfg, base_clock());
    node = fleet_find(STR("a"));
    node->addr_len = sizeof(struct sockaddr_in);
    fleet_set_health(node, NULL, NODE_UP, "set", base_clock());
    collection = NULL;
    changes[0] = 0;
    return 0;
}

static int stop(void **state)
{
    fleet_free_all();
    /* Whatever was judged, the policy judged it and no fallback. */
    return policy_stats(POLICY_FAILOVER)->fallbacks != 0;
}

/* P pass, F failed probe, B busy, c connect failure, t time-out, r reset, 5 a 5xx answer, o an
 * answer; about the collection if there is one. */
static void signs(const char *text)
{
    static const struct {
        char c;
        enum health_signal s;
        const char *text;
    } all[] = {
        {'P', HEALTH_PROBE_PASS, NULL},    {'F', HEALTH_PROBE_FAIL, "no heartbeat"},
        {'B', HEALTH_BUSY, NULL},          {'c', HEALTH_CONNECT_FAIL, "refused"},
        {'t', HEALTH_TIMEOUT, "too slow"}, {'r', HEALTH_RESET, "broken off"},
        {'5', HEALTH_5XX, "answered 500"}, {'o', HEALTH_OK, NULL},
    };
    for (; *text; text++)
        for (size_t i = 0; i < COUNT_OF(all); i++)
            if (all[i].c == *text)
                health_note(node, collection, all[i].s, all[i].text);
}

static void expect(const char *text)
{
    assert_string_equal(changes, text);
    changes[0] = 0;
}

/* ---- an instance ------------------------------------------------------------------------------
 */

static void a_well_instance_stays_up(void **state)
{
    signs("PoPooPBoP5oPB5");
    expect("");
    assert_int_equal(node->health, NODE_UP);
}

static void one_probe_decides_about_a_new_instance(void **state)
{
    struct node *b = node = fleet_find(STR("b"));
    assert_int_equal(b->health, NODE_SUSPECT);
    signs("P");
    assert_int_equal(b->health, NODE_UP);
}

static void a_new_instance_that_never_answers_goes_down(void **state)
{
    node = fleet_find(STR("b"));
    signs("FF");
    expect("");
    signs("F");
    expect("suspect>down: 3 probes failed: no heartbeat");
}

static void failed_probes_lead_down_and_good_ones_up(void **state)
{
    signs("F");
    expect("up>suspect: no heartbeat");
    signs("F");
    expect("");
    signs("F");
    expect("suspect>down: 3 probes failed: no heartbeat");
    signs("FFF");
    expect("");
    signs("P");
    expect("");
    assert_int_equal(node->health, NODE_DOWN);
    signs("P");
    expect("down>up: 2 probes passed");
    signs("PP");
    expect("");
}

static void failures_must_be_in_a_row(void **state)
{
    signs("FFP");
    expect("up>suspect: no heartbeat; suspect>up: a probe was answered");
    signs("FFPFFP");
    assert_int_equal(node->health, NODE_UP);
    assert_null(strstr(changes, "down"));
}

static void successes_must_be_in_a_row(void **state)
{
    signs("FFF");
    changes[0] = 0;
    signs("PFPFPF");
    expect("");
    assert_int_equal(node->health, NODE_DOWN);
    signs("PP");
    expect("down>up: 2 probes passed");
}

static void thresholds_are_the_settings(void **state)
{
    use("1", "1");
    signs("F");
    expect("up>down: 1 probes failed: no heartbeat");
    signs("P");
    expect("down>up: 1 probes passed");
    use("5", "4");
    signs("FFFF");
    assert_int_equal(node->health, NODE_SUSPECT);
    signs("F");
    assert_int_equal(node->health, NODE_DOWN);
    signs("PPP");
    assert_int_equal(node->health, NODE_DOWN);
    signs("P");
    assert_int_equal(node->health, NODE_UP);
}

/* What requests meet makes doubtful at once, but only a probe confirms it. */
static void failed_requests_make_suspect_and_one_probe_confirms(void **state)
{
    static const char *const rows[][2] = {{"c", "refused"}, {"t", "too slow"}, {"r", "broken off"}};
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char want[128];
        signs(rows[i][0]);
        snprintf(want, sizeof want, "up>suspect: %s", rows[i][1]);
        expect(want);
        for (int k = 0; k < 20; k++)
            signs(rows[i][0]);
        expect("");
        signs("F");
        expect("suspect>down: 21 requests and a probe failed: no heartbeat");
        signs("PP");
        expect("down>up: 2 probes passed");
        assert_int_equal(
            node->history.connect_fails + node->history.timeouts + node->history.resets, 0);
    }
}

static void failed_requests_of_all_kinds_add_up(void **state)
{
    signs("ctr");
    signs("F");
    assert_int_equal(node->health, NODE_SUSPECT);
    signs("ct");
    expect("up>suspect: refused; suspect>down: 5 requests and a probe failed: too slow");
}

static void a_good_answer_forgets_failed_requests(void **state)
{
    signs("rrrrroF");
    assert_int_equal(node->health, NODE_SUSPECT); /* the probe failed alone */
    assert_null(strstr(changes, "down"));
}

/* An answer may come from before the trouble; a probe is newer than it. */
static void only_a_probe_clears_a_suspicion(void **state)
{
    signs("r");
    changes[0] = 0;
    signs("oooooo");
    expect("");
    assert_int_equal(node->health, NODE_SUSPECT);
    signs("P");
    expect("suspect>up: a probe was answered");
}

static void answers_do_not_bring_a_dead_instance_up(void **state)
{
    signs("FFF");
    changes[0] = 0;
    signs("oooooooo");
    expect("");
    assert_int_equal(node->health, NODE_DOWN);
}

static void error_answers_take_no_instance_down(void **state)
{
    for (int i = 0; i < 1000; i++)
        signs("5");
    expect("");
    assert_int_equal(node->history.errors_5xx, 1000);
    signs("o");
    assert_int_equal(node->history.errors_5xx, 0);
}

/* ---- busy -------------------------------------------------------------------------------------
 */

static void a_busy_instance_is_not_down(void **state)
{
    signs("BBBBBBBBBB");
    expect("");
    assert_true(node->history.busy_since > 0);
    signs("P");
    assert_true(node->history.busy_since == 0);
    /* A heartbeat is a sign of life: failures before it don't count on. */
    signs("FFBFFB");
    assert_int_equal(node->health, NODE_UP);
    assert_null(strstr(changes, "down"));
}

static void busy_is_not_for_ever(void **state)
{
    signs("B");
    node->history.busy_since = base_clock() - 59;
    signs("B");
    expect("");
    node->history.busy_since = base_clock() - 61;
    signs("B");
    expect("up>down: no data for 61 s");
    signs("PP");
    expect("down>up: 2 probes passed");
    assert_true(node->history.busy_since == 0);
}

static void busy_brings_nobody_up(void **state)
{
    signs("FFF");
    changes[0] = 0;
    signs("BBBBBBBB");
    expect("");
    assert_int_equal(node->health, NODE_DOWN);
    signs("PBP"); /* nor is it a failure between two passes */
    expect("down>up: 2 probes passed");
}

static void a_heartbeat_clears_a_suspicion(void **state)
{
    signs("t");
    changes[0] = 0;
    signs("B");
    expect("suspect>up: a probe was answered");
}

/* ---- a collection -----------------------------------------------------------------------------
 */

static void begin_collection(void)
{
    collection =
        fleet_collection_note(node, ID, STR("/api/v2/tenants/t/databases/d/collections/" ID));
    assert_non_null(collection);
    assert_int_equal(collection->health, NODE_UP);
}

static void error_answers_take_one_collection_out(void **state)
{
    begin_collection();
    signs("55");
    expect("");
    signs("5");
    expect("collection up>down: 3 answers 5xx in a row: answered 500");
    assert_int_equal(node->health, NODE_UP);
    assert_false(fleet_can_serve(node, ID, false));
    assert_true(fleet_can_serve(node, ID, true)); /* when nobody else has it: its error, not ours */
    assert_true(fleet_can_serve(node, "22222222-2222-2222-2222-222222222222", false));
    assert_true(fleet_can_serve(node, "", false));
    signs("5555");
    expect("");
}

static void error_answers_must_be_in_a_row(void **state)
{
    begin_collection();
    signs("55o55o55o");
    expect("");
    assert_int_equal(collection->health, NODE_UP);
}

static void good_answers_bring_a_collection_back(void **state)
{
    begin_collection();
    signs("555");
    changes[0] = 0;
    signs("oo5oo");
    expect("");
    signs("o");
    expect("collection down>up: 3 good answers");
    assert_true(fleet_can_serve(node, ID, false));
}

static void good_probes_bring_a_collection_back(void **state)
{
    begin_collection();
    signs("555");
    changes[0] = 0;
    signs("PFP");
    expect("");
    signs("P");
    expect("collection down>up: 2 probes passed");
}

static void failed_probes_take_a_collection_out(void **state)
{
    begin_collection();
    signs("FFF");
    assert_int_equal(collection->health, NODE_DOWN);
    assert_int_equal(node->health, NODE_UP);
    assert_non_null(strstr(changes, "collection "));
    assert_non_null(strstr(changes, ">down: 3 probes failed: no heartbeat"));
}

static void a_collection_and_its_instance_are_judged_apart(void **state)
{
    begin_collection();
    struct collection_state *c = collection;
    signs("555");
    collection = NULL;
    signs("FFF");
    assert_int_equal(node->health, NODE_DOWN);
    signs("PP");
    assert_int_equal(node->health, NODE_UP);
    assert_int_equal(c->health, NODE_DOWN);
}

/* ---- what is remembered -----------------------------------------------------------------------
 */

static void an_answer_of_a_well_instance_asks_no_policy(void **state)
{
    uint64_t calls = policy_stats(POLICY_FAILOVER)->calls;
    for (int i = 0; i < 100; i++)
        signs("o");
    assert_int_equal(policy_stats(POLICY_FAILOVER)->calls, calls);
    assert_int_equal(node->history.oks, 100);
    signs("P");
    assert_int_equal(policy_stats(POLICY_FAILOVER)->calls, calls + 1);
}

static void the_last_failure_is_remembered(void **state)
{
    char longer[300];
    assert_true(node->last_failure == 0);
    signs("PoB");
    assert_true(node->last_failure == 0);
    signs("r");
    assert_true(node->last_failure > ev_time() - 60);
    assert_string_equal(node->history.last_error, "broken off");
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    health_note(node, NULL, HEALTH_RESET, longer);
    assert_int_equal(strlen(node->history.last_error), sizeof node->history.last_error - 1);
    health_note(node, NULL, HEALTH_RESET, NULL);
    health_note(node, NULL, HEALTH_RESET, "");
    assert_int_equal(node->history.last_error[0], 'x'); /* nothing is said: nothing is new */
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(a_well_instance_stays_up),
        TEST(one_probe_decides_about_a_new_instance),
        TEST(a_new_instance_that_never_answers_goes_down),
        TEST(failed_probes_lead_down_and_good_ones_up),
        TEST(failures_must_be_in_a_row),
        TEST(successes_must_be_in_a_row),
        TEST(thresholds_are_the_settings),
        TEST(failed_requests_make_suspect_and_one_probe_confirms),
        TEST(failed_requests_of_all_kinds_add_up),
        TEST(a_good_answer_forgets_failed_requests),
        TEST(only_a_probe_clears_a_suspicion),
        TEST(answers_do_not_bring_a_dead_instance_up),
        TEST(error_answers_take_no_instance_down),
        TEST(a_busy_instance_is_not_down),
        TEST(busy_is_not_for_ever),
        TEST(busy_brings_nobody_up),
        TEST(a_heartbeat_clears_a_suspicion),
        TEST(error_answers_take_one_collection_out),
        TEST(error_answers_must_be_in_a_row),
        TEST(good_answers_bring_a_collection_back),
        TEST(good_probes_bring_a_collection_back),
        TEST(failed_probes_take_a_collection_out),
        TEST(a_collection_and_its_instance_are_judged_apart),
        TEST(an_answer_of_a_well_instance_asks_no_policy),
        TEST(the_last_failure_is_remembered),
    };
    return cmocka_run_group_tests(tests, once, finish);
}
