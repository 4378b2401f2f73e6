/* fleet_test.c: who may serve, how health moves, and how nodes come and go. */
#include "fleet.h"

#include "log.h"

#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#define ID_A "11111111-1111-1111-1111-111111111111"
#define ID_B "22222222-2222-2222-2222-222222222222"
#define PATH STR("/api/v2/tenants/t/databases/d/collections/" ID_A)

/* What the observers saw; they can't be taken back, so there is one of each for all tests. */
static struct {
    unsigned health, joined, left;
    struct node *node;
    struct collection_state *collection;
    enum node_health was, now;
    char reason[256], left_names[256];
    bool in_list;
} seen;

static void on_health(struct node *n, struct collection_state *c, enum node_health was,
                      const char *reason)
{
    seen.health++;
    seen.node = n;
    seen.collection = c;
    seen.was = was;
    seen.now = c ? c->health : n->health;
    snprintf(seen.reason, sizeof seen.reason, "%s", reason);
}

static void on_membership(struct node *n, bool joins)
{
    if (!joins) {
        seen.left++;
        size_t at = strlen(seen.left_names);
        snprintf(seen.left_names + at, sizeof seen.left_names - at, "%s;", n->name);
        return;
    }
    seen.joined++;
    seen.in_list = false;
    for (unsigned i = 0; i < fleet_count; i++)
        seen.in_list |= fleet_node[i] == n;
}

/* "a=http://a:1;b=…" as fleet_configure wants it. */
static void configure(const char *instances, double now)
{
    struct config_raws raws = {0};
    struct buf errors;
    buf_init(&errors, 4096);
    config_raws_add(&raws, "CHROMA_INSTANCES", instances, CONFIG_TEXT, "--set");
    struct config *c = config_build(&raws, &errors);
    assert_int_equal(buf_len(&errors), 0);
    assert_non_null(c);
    fleet_configure(c, now);
    config_free(c);
    config_raws_fini(&raws);
    buf_fini(&errors);
}

static struct node *find(const char *name)
{
    return fleet_find(str_from(name));
}

/* A node that is up and has an address. */
static struct node *well(const char *name)
{
    struct node *n = find(name);
    assert_non_null(n);
    n->addr_len = sizeof(struct sockaddr_in);
    fleet_set_health(n, NULL, NODE_UP, "first probe", 1);
    return n;
}

static int start(void **state)
{
    memset(&seen, 0, sizeof seen);
    return 0;
}

static int stop(void **state)
{
    fleet_free_all();
    return 0;
}

static int once(void **state)
{
    log_set_fd(-1);
    fleet_observe(on_health);
    fleet_observe_membership(on_membership);
    return 0;
}

/* ---- who may serve --------------------------------------------------------------------------- */

static void only_the_well_serve(void **state)
{
    configure("a=http://a:1", 1);
    struct node *n = well("a");
    assert_true(fleet_can_serve(n, "", false));
    assert_true(fleet_can_serve(n, "", true));
    fleet_set_health(n, NULL, NODE_SUSPECT, "reset", 2);
    assert_false(fleet_can_serve(n, "", false));
    assert_true(fleet_can_serve(n, "", true));
    fleet_set_health(n, NULL, NODE_DOWN, "3 fails", 3);
    assert_false(fleet_can_serve(n, "", false));
    assert_false(fleet_can_serve(n, "", true));
}

static void a_new_node_serves_only_as_a_last_resort(void **state)
{
    configure("a=http://a:1", 1);
    struct node *n = find("a");
    n->addr_len = sizeof(struct sockaddr_in);
    assert_int_equal(n->health, NODE_SUSPECT);
    assert_false(fleet_can_serve(n, "", false));
    assert_true(fleet_can_serve(n, "", true));
}

static void drained_unresolved_and_removed_nodes_never_serve(void **state)
{
    configure("a=http://a:1;b=http://b:1", 1);
    struct node *n = well("b");
    n->admin = NODE_DRAIN;
    assert_false(fleet_can_serve(n, "", true));
    n->admin = NODE_MAINT;
    assert_false(fleet_can_serve(n, "", true));
    n->admin = NODE_READY;
    n->addr_len = 0;
    assert_false(fleet_can_serve(n, "", true));
    n->addr_len = sizeof(struct sockaddr_in);
    assert_true(fleet_can_serve(n, "", true));
    fleet_hold(n);
    configure("a=http://a:1", 2);
    assert_true(n->removed);
    assert_false(fleet_can_serve(n, "", true));
    fleet_release(&n);
}

static void a_collection_that_is_down_closes_only_itself(void **state)
{
    configure("a=http://a:1", 1);
    struct node *n = well("a");
    struct collection_state *c = fleet_collection_note(n, ID_A, PATH);
    assert_true(fleet_can_serve(n, ID_A, false));
    fleet_set_health(n, c, NODE_DOWN, "5xx", 2);
    assert_int_equal(n->health, NODE_UP);
    assert_false(fleet_can_serve(n, ID_A, false));
    assert_true(fleet_can_serve(n, ID_A, true));
    assert_true(fleet_can_serve(n, ID_B, false));
    assert_true(fleet_can_serve(n, "", false));
    fleet_set_health(n, c, NODE_UP, "answers", 3);
    assert_true(fleet_can_serve(n, ID_A, false));
}

/* ---- health ---------------------------------------------------------------------------------- */

static void a_change_is_told_once_after_it_was_made(void **state)
{
    configure("a=http://a:1", 1);
    struct node *n = well("a");
    assert_int_equal(seen.health, 1);
    fleet_set_health(n, NULL, NODE_DOWN, "gone", 5);
    assert_int_equal(seen.health, 2);
    assert_ptr_equal(seen.node, n);
    assert_null(seen.collection);
    assert_int_equal(seen.was, NODE_UP);
    assert_int_equal(seen.now, NODE_DOWN);
    assert_string_equal(seen.reason, "gone");
    assert_true(n->since == 5);
    fleet_set_health(n, NULL, NODE_DOWN, "still gone", 6);
    assert_int_equal(seen.health, 2);
    assert_true(n->since == 5);
    struct collection_state *c = fleet_collection_note(n, ID_A, PATH);
    fleet_set_health(n, c, NODE_DOWN, "5xx", 7);
    assert_ptr_equal(seen.collection, c);
    assert_true(c->since == 7 && n->since == 5);
}

static void up_starts_a_clean_sheet_and_down_forgets_passes(void **state)
{
    configure("a=http://a:1", 1);
    struct node *n = well("a");
    struct history *h = &n->history;
    *h = (struct history){.fails = 3, .passes = 1, .oks = 9, .timeouts = 2, .busy_since = 4};
    fleet_set_health(n, NULL, NODE_DOWN, "gone", 5);
    assert_int_equal(h->passes, 0);
    assert_int_equal(h->oks, 0);
    assert_int_equal(h->fails, 3);
    assert_int_equal(h->timeouts, 2);
    *h = (struct history){.fails = 3,
                          .passes = 2,
                          .connect_fails = 1,
                          .timeouts = 1,
                          .resets = 1,
                          .errors_5xx = 1,
                          .busy_since = 4,
                          .last_error = "was refused"};
    fleet_set_health(n, NULL, NODE_UP, h->last_error, 6);
    assert_int_equal(h->fails + h->connect_fails + h->timeouts + h->resets + h->errors_5xx, 0);
    assert_int_equal(h->passes, 2);
    assert_true(h->busy_since == 4);
    assert_string_equal(h->last_error, "");
    assert_string_equal(seen.reason, "was refused");
}

static void slow_start_follows_down_only(void **state)
{
    configure("a=http://a:1,weight=200", 1);
    struct node *n = find("a");
    fleet_set_health(n, NULL, NODE_UP, "first probe", 10);
    assert_true(fleet_weight(n, 10, 10) == 200);
    fleet_set_health(n, NULL, NODE_SUSPECT, "reset", 20);
    fleet_set_health(n, NULL, NODE_UP, "passed", 21);
    assert_true(fleet_weight(n, 21, 10) == 200);
    fleet_set_health(n, NULL, NODE_DOWN, "gone", 30);
    assert_true(n->slow_start_at == 0);
    fleet_set_health(n, NULL, NODE_UP, "back", 40);
    assert_true(fleet_weight(n, 40, 10) == 2);
    assert_true(fleet_weight(n, 45, 10) == 100);
    assert_true(fleet_weight(n, 50, 10) == 200);
    assert_true(fleet_weight(n, 99, 10) == 200);
    assert_true(fleet_weight(n, 45, 0) == 200);
    /* A doubt during slow start does not start it anew. */
    fleet_set_health(n, NULL, NODE_SUSPECT, "reset", 42);
    fleet_set_health(n, NULL, NODE_UP, "passed", 44);
    assert_true(fleet_weight(n, 45, 10) == 100);
    /* Coming back through suspect counts from up. */
    fleet_set_health(n, NULL, NODE_DOWN, "gone", 50);
    assert_true(n->slow_start_at == 0);
    fleet_set_health(n, NULL, NODE_SUSPECT, "perhaps", 55);
    fleet_set_health(n, NULL, NODE_UP, "back", 60);
    assert_true(fleet_weight(n, 65, 10) == 100);
}

static void health_of_a_removed_node_is_nobodys(void **state)
{
    configure("a=http://a:1;b=http://b:1", 1);
    struct node *n = well("b");
    fleet_hold(n);
    configure("a=http://a:1", 2);
    seen.health = 0;
    fleet_set_health(n, NULL, NODE_DOWN, "gone", 3);
    assert_int_equal(seen.health, 0);
    fleet_release(&n);
}

static void a_change_is_logged_with_its_reason(void **state)
{
    int ends[2];
    char line[1024] = "";
    assert_int_equal(pipe(ends), 0);
    configure("a=http://a:1", 1);
    struct node *n = well("a");
    struct collection_state *c = fleet_collection_note(n, ID_A, PATH);
    log_set_fd(ends[1]);
    fleet_set_health(n, NULL, NODE_DOWN, "3 probes failed", 2);
    fleet_set_health(n, c, NODE_DOWN, "5xx", 2);
    log_set_fd(-1);
    close(ends[1]);
    size_t got = 0;
    for (ssize_t r; (r = read(ends[0], line + got, sizeof line - 1 - got)) > 0;)
        got += (size_t)r;
    close(ends[0]);
    assert_non_null(strstr(line, " warn instance_down name=a was=up reason=\"3 probes failed\"\n"));
    assert_non_null(
        strstr(line, " warn collection_down name=a collection=" ID_A " was=up reason=5xx\n"));
}

/* ---- coming and going ------------------------------------------------------------------------ */

static void known_nodes_keep_what_they_learnt(void **state)
{
    configure("a=http://a:1,priority=2;b=http://b:1,priority=1", 1);
    assert_int_equal(seen.joined, 2);
    assert_true(seen.in_list);
    struct node *a = well("a"), *b = well("b");
    a->inflight = 3;
    a->ewma_ms = 7;
    fleet_collection_note(a, ID_A, PATH);
    assert_ptr_equal(fleet_primary(), a);
    configure("b=http://b:1,priority=3,weight=9;a=http://A:1/,priority=2,maxconn=4;c=http://c:1",
              2);
    assert_int_equal(seen.joined, 3);
    assert_int_equal(seen.left, 0);
    assert_int_equal(fleet_count, 3);
    assert_ptr_equal(find("a"), a);
    assert_ptr_equal(fleet_node[1], b);
    assert_ptr_equal(fleet_node[2], a);
    assert_string_equal(fleet_node[0]->name, "c"); /* priority 100 by default */
    assert_ptr_equal(fleet_primary(), fleet_node[0]);
    assert_int_equal(a->health, NODE_UP);
    assert_int_equal(a->inflight, 3);
    assert_true(a->ewma_ms == 7);
    assert_int_equal(a->maxconn, 4);
    assert_int_equal(b->weight, 9);
    assert_string_equal(a->url, "http://A:1/");
    assert_int_equal(a->collection_count, 1);
    assert_false(a->removed);
}

static void a_changed_address_is_a_new_node(void **state)
{
    configure("a=http://a:1", 1);
    struct node *old = well("a");
    fleet_hold(old);
    configure("a=http://a:2", 2);
    assert_true(old->removed);
    assert_int_equal(seen.left, 0);
    struct node *fresh = find("a");
    assert_ptr_not_equal(fresh, old);
    assert_int_equal(fresh->health, NODE_SUSPECT);
    assert_int_equal(fresh->port, 2);
    assert_int_not_equal(fresh->id, old->id);
    configure("a=http://other:2", 3);
    assert_int_equal(seen.left, 1); /* nobody held a:2 */
    fleet_release(&old);
    assert_null(old);
    assert_int_equal(seen.left, 2);
    assert_int_equal(fleet_count, 1);
}

static void the_last_user_of_a_removed_node_frees_it(void **state)
{
    configure("a=http://a:1;b=http://b:1", 1);
    struct node *one = find("b"), *two = one, *living = find("a");
    fleet_hold(one);
    fleet_hold(two);
    fleet_collection_note(one, ID_A, PATH);
    configure("a=http://a:1", 2);
    assert_null(find("b"));
    fleet_release(&one);
    assert_int_equal(seen.left, 0);
    fleet_release(&two);
    assert_int_equal(seen.left, 1);
    assert_string_equal(seen.left_names, "b;");
    fleet_hold(living);
    fleet_release(&living);
    assert_int_equal(seen.left, 1);
    assert_non_null(find("a"));
}

static void ids_are_the_lowest_that_nobody_carries(void **state)
{
    configure("a=http://a:1;b=http://b:1;c=http://c:1", 1);
    assert_int_equal(find("a")->id, 0);
    assert_int_equal(find("b")->id, 1);
    assert_int_equal(find("c")->id, 2);
    struct node *held = find("a");
    fleet_hold(held);
    configure("c=http://c:1;d=http://d:1", 2); /* a is held, b goes */
    assert_int_equal(find("c")->id, 2);
    assert_int_equal(find("d")->id, 3); /* b was still there when d came */
    configure("c=http://c:1;d=http://d:1;e=http://e:1;f=http://f:1", 3);
    assert_int_equal(find("e")->id, 1);
    assert_int_equal(find("f")->id, 4);
    fleet_release(&held);
    configure("c=http://c:1;g=http://g:1", 4);
    assert_int_equal(find("g")->id, 0);
}

/* 64 nodes, all exchanged again and again while every old one is held: ids of the living differ. */
static void ids_of_the_living_differ_even_when_all_are_held(void **state)
{
    static struct node *held[3 * FLEET_MAX];
    unsigned n = 0;
    for (unsigned round = 0; round < 3; round++) {
        char list[8192];
        size_t at = 0;
        for (unsigned i = 0; i < FLEET_MAX; i++)
            at += (size_t)snprintf(list + at, sizeof list - at, "n%u=http://h%u:%u;", i, i,
                                   round + 1);
        configure(list, round);
        uint64_t ids = 0;
        for (unsigned i = 0; i < fleet_count; i++) {
            assert_true(fleet_node[i]->id < 64);
            ids |= UINT64_C(1) << fleet_node[i]->id;
            fleet_hold(held[n++] = fleet_node[i]);
        }
        assert_true(~ids == 0);
    }
    for (unsigned i = 0; i < n; i++)
        fleet_release(&held[i]);
    assert_int_equal(seen.left, 2 * FLEET_MAX);
}

/* ---- collections and load -------------------------------------------------------------------- */

static void collections_are_noted_found_and_forgotten(void **state)
{
    configure("a=http://a:1", 1);
    struct node *n = find("a");
    assert_null(fleet_collection(n, ID_A));
    struct collection_state *a = fleet_collection_note(n, ID_A, PATH);
    struct collection_state *b = fleet_collection_note(n, ID_B, STR("/b"));
    assert_int_equal(a->health, NODE_UP);
    assert_string_equal(a->path, PATH.p);
    assert_ptr_equal(fleet_collection_note(n, ID_A, STR("/else")), a);
    assert_ptr_equal(fleet_collection(n, ID_B), b);
    assert_int_equal(n->collection_count, 2);
    fleet_collection_forget(n, a);
    assert_null(fleet_collection(n, ID_A));
    assert_ptr_equal(fleet_collection(n, ID_B), b);
    assert_int_equal(n->collection_count, 1);
}

static void a_node_remembers_so_many_collections_and_no_more(void **state)
{
    char id[37];
    configure("a=http://a:1", 1);
    struct node *n = find("a");
    for (unsigned i = 0; i < FLEET_COLLECTIONS_MAX; i++) {
        snprintf(id, sizeof id, "%08x-1111-1111-1111-111111111111", i);
        assert_non_null(fleet_collection_note(n, id, PATH));
    }
    assert_null(fleet_collection_note(n, ID_A, PATH));
    assert_non_null(fleet_collection_note(n, id, PATH)); /* a known one is still found */
    assert_int_equal(n->collection_count, FLEET_COLLECTIONS_MAX);
    fleet_collection_forget(n, n->collections);
    assert_non_null(fleet_collection_note(n, ID_A, PATH));
}

static void latency_rises_at_once_and_decays_over_ten_seconds(void **state)
{
    configure("a=http://a:1", 1);
    struct node *n = find("a");
    fleet_note_latency(n, 0.010, 100);
    assert_true(n->ewma_ms == 10);
    fleet_note_latency(n, 0.500, 100.001);
    assert_true(n->ewma_ms == 500);
    fleet_note_latency(n, 0.100, 110.001);
    assert_true(n->ewma_ms > 246 && n->ewma_ms < 248); /* 100 + 400/e */
    fleet_note_latency(n, 0.100, 110.001);
    assert_true(n->ewma_ms > 246); /* no time, no decay */
    fleet_note_latency(n, 0.100, 300);
    assert_true(n->ewma_ms < 101);
}

static void states_have_the_words_of_the_contract(void **state)
{
    assert_string_equal(fleet_health_name(NODE_UP), "up");
    assert_string_equal(fleet_health_name(NODE_SUSPECT), "suspect");
    assert_string_equal(fleet_health_name(NODE_DOWN), "down");
    assert_string_equal(fleet_admin_name(NODE_READY), "ready");
    assert_string_equal(fleet_admin_name(NODE_DRAIN), "drain");
    assert_string_equal(fleet_admin_name(NODE_MAINT), "maint");
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(only_the_well_serve),
        TEST(a_new_node_serves_only_as_a_last_resort),
        TEST(drained_unresolved_and_removed_nodes_never_serve),
        TEST(a_collection_that_is_down_closes_only_itself),
        TEST(a_change_is_told_once_after_it_was_made),
        TEST(up_starts_a_clean_sheet_and_down_forgets_passes),
        TEST(slow_start_follows_down_only),
        TEST(health_of_a_removed_node_is_nobodys),
        TEST(a_change_is_logged_with_its_reason),
        TEST(known_nodes_keep_what_they_learnt),
        TEST(a_changed_address_is_a_new_node),
        TEST(the_last_user_of_a_removed_node_frees_it),
        TEST(ids_are_the_lowest_that_nobody_carries),
        TEST(ids_of_the_living_differ_even_when_all_are_held),
        TEST(collections_are_noted_found_and_forgotten),
        TEST(a_node_remembers_so_many_collections_and_no_more),
        TEST(latency_rises_at_once_and_decays_over_ten_seconds),
        TEST(states_have_the_words_of_the_contract),
    };
    return cmocka_run_group_tests(tests, once, NULL);
}
