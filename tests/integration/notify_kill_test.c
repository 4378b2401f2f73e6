/* What people are told while balancers and PostgreSQL die: all of it, and nothing twice but what
 * was under way. */
#include "hook.h"

#include <signal.h>
#include <string.h>

static long rows(struct stage *s, const char *state)
{
    return sql_number(s, "SELECT count(*) FROM notify_messages WHERE state = '%s'", state);
}

static void again(struct stage *s)
{
    chromux_signal(s->x, SIGKILL);
    stage_again(s);
}

static void a_killed_sender_loses_and_repeats_nothing_it_was_told_of(void **state)
{
    struct peer *p = hook_start();
    struct stage *s = stage_new();
    stage_chromux(s, "POLICY_TIME=1", slack_at(p), NULL);
    /* Before it is taken in, or just after. */
    event(s, "note", "some/a", "killed-early");
    again(s);
    check_soon(told(p, "killed-early") == 1, 20);
    check_soon(rows(s, "sent") == 1, 10);
    /* While it waits for others. */
    event(s, "note", "some/b", "killed-taken");
    check_soon(sql_number(s, "SELECT count(*) FROM notify_events WHERE state = 'ready'") == 1, 5);
    again(s);
    check_soon(told(p, "killed-taken") == 1, 20);
    check_soon(rows(s, "sent") == 2, 10);
    /* Between sending and the answer: this one may come twice. */
    treat((const enum how[]){HOLD}, 1);
    event(s, "note", "some/c", "killed-sending");
    check_soon(told(p, "killed-sending") == 1, 20);
    check_int(rows(s, "sending"), 1);
    again(s);
    peer_release(p);
    check_soon(told(p, "killed-sending") == 2, 20);
    check_has(chromux_log(s->x), "message_again");
    check_soon(rows(s, "sent") == 3, 10);
    /* After the answer. */
    event(s, "note", "some/d", "killed-after");
    check_soon(rows(s, "sent") == 4, 20);
    again(s);
    flush(s, p, "that-was-all");
    check_int(told(p, "killed-early"), 1);
    check_int(told(p, "killed-taken"), 1);
    check_int(told(p, "killed-sending"), 2);
    check_int(told(p, "killed-after"), 1);
    /* What goes on is not told again by the next one; its end is told, though nobody saw it. */
    chroma_kill(s->server[1]);
    check_soon(told(p, "Server replica is down") == 1, 20);
    check_soon(rows(s, "queued") + rows(s, "sending") == 0, 10);
    again(s);
    flush(s, p, "after-the-restart");
    chromux_signal(s->x, SIGKILL);
    check(chromux_wait_exit(s->x, 10));
    chroma_again(s->server[1]);
    stage_again(s);
    check_soon(told(p, "Server replica is up again") == 1, 20);
    check_int(told(p, "Server replica is down"), 1);
}

/* Killed again and again at any moment, by a hook that fails now and then: each event is told, and
 * twice only what was under way when it was killed. */
static void many_kills_lose_nothing(void **state)
{
    enum { KILLS = 6, EVENTS = 24 };
    struct peer *p = hook_start();
    struct stage *s = stage_new();
    stage_chromux(s, "POLICY_TIME=1", slack_at(p), NULL);
    treat((const enum how[]){TAKE, FAIL, TAKE, TAKE, RESET, TAKE, TAKE, FAIL}, 8);
    unsigned raised = 0, killed = 0, before = 0;
    while (raised < EVENTS || killed < KILLS) {
        for (unsigned i = 0; i < EVENTS / KILLS && raised < EVENTS; i++, raised++)
            event(s, "note", keepf("some/%u", raised), keepf("event-%02u.", raised));
        /* Right when the next request comes, or once it is answered. */
        check_soon(killed % 2 ? peer_requests(p) > before : hooks_answered() > killed / 2, 30);
        chromux_signal(s->x, SIGKILL);
        stage_again(s);
        before = peer_requests(p);
        killed++;
    }
    flush(s, p, "that-was-all");
    check_soon(rows(s, "queued") + rows(s, "sending") == 0, 30);
    unsigned again = 0;
    for (unsigned i = 0; i < EVENTS; i++) {
        unsigned n = told(p, keepf("event-%02u.", i));
        check(n >= 1);
        again += n > 1;
    }
    /* A message holds up to the events between two kills; failed tries come again as well. */
    check(peer_requests(p) <= (unsigned)rows(s, "sent") + KILLS + 3);
    check(again < EVENTS);
    /* What was told is written down a little later. */
    check_soon(sql_number(s, "SELECT count(*) FROM notify_events WHERE state <> 'told'") == 0, 10);
}

static char *messages(struct stage *s)
{
    return json_field(get(s, "/status")->body, "messages");
}

static void without_postgresql_people_are_told_and_it_is_recorded_later(void **state)
{
    struct peer *p = hook_start();
    struct stage *s = stage_new();
    stage_chromux(s, "POLICY_TIME=1", slack_at(p), NULL);
    flush(s, p, "before");
    stage_pg_kill(SIGQUIT);
    check_soon(told(p, "The journal is unavailable") == 1, 30);
    chroma_kill(s->server[1]);
    check_soon(told(p, "Server replica is down") == 1, 30);
    check_has(messages(s), "\"key\":\"journal\"");
    chroma_again(s->server[1]);
    check_soon(told(p, "Server replica is up again") == 1, 30);
    stage_pg_again();
    check_soon(told(p, "The journal is back") == 1, 30);
    flush(s, p, "after");
    check_int(told(p, "The journal is unavailable"), 1);
    check_int(told(p, "Server replica is down"), 1);
    check_int(told(p, "Server replica is up again"), 1);
    check_soon(
        sql_number(s, "SELECT count(*) FROM notify_events WHERE state = 'told' AND kind IN "
                      "('journal_unavailable', 'server_down', 'server_up', 'journal_back')") == 4,
        10);
    check_int(sql_number(s, "SELECT count(*) FROM notify_events WHERE open"), 0);
    check_int(sql_number(s, "SELECT times FROM notify_sent WHERE kind = 'server_down'"), 1);
    /* Nor does a restart tell it again. */
    again(s);
    flush(s, p, "at-last");
    check_int(told(p, "The journal is unavailable"), 1);
    check_int(told(p, "Server replica is down"), 1);
}

static void a_postgresql_that_hangs_delays_messages_only(void **state)
{
    struct peer *p = hook_start();
    struct stage *s = stage_new();
    stage_chromux(s, "POLICY_TIME=1", slack_at(p), NULL);
    static const char backends[] = "SELECT pid FROM pg_stat_activity WHERE datname = "
                                   "current_database() AND pid <> pg_backend_pid() ORDER BY pid "
                                   "OFFSET %u LIMIT 1";
    pid_t stopped[8] = {stage_pg_pid()};
    unsigned count = 1;
    while (count < COUNT_OF(stopped) &&
           (stopped[count] = (pid_t)sql_number(s, backends, count - 1)))
        count++;
    event(s, "note", "some/a", "taken-before");
    check_soon(sql_number(s, "SELECT count(*) FROM notify_events WHERE state = 'ready'") == 1, 5);
    for (unsigned i = 0; i < count; i++)
        check(kill(stopped[i], SIGSTOP) == 0);
    check_soon(told(p, "The journal is unavailable") == 1, 40);
    chroma_kill(s->server[1]);
    check_soon(told(p, "Server replica is down") == 1, 40);
    for (unsigned i = 0; i < count; i++)
        check(kill(stopped[i], SIGCONT) == 0);
    check_soon(told(p, "The journal is back") == 1, 40);
    /* What lay in a socket all the while changes nothing that was written since. */
    flush(s, p, "after");
    again(s);
    flush(s, p, "at-last");
    check_int(told(p, "taken-before"), 1);
    check_int(told(p, "The journal is unavailable"), 1);
    check_int(told(p, "Server replica is down"), 1);
}

static void of_two_balancers_one_sends(void **state)
{
    struct peer *p = hook_start();
    struct stage *a = stage_new(), *b = keep(sizeof *b);
    *b = *a;
    stage_chromux(a, "POLICY_TIME=1", slack_at(p), NULL);
    stage_chromux(b, "POLICY_TIME=1", slack_at(p), NULL);
    chroma_kill(a->server[1]);
    check_soon(told(p, "Server replica is down") == 1, 20);
    flush(a, p, "by-the-first");
    check_int(told(p, "Server replica is down"), 1);
    check(metric(a, "chromux_messages_teller") == 1);
    check(metric(b, "chromux_messages_teller") == 0);
    chromux_signal(a->x, SIGKILL);
    check(chromux_wait_exit(a->x, 10));
    event(b, "note", "some/a", "for-the-second");
    check_soon(told(p, "for-the-second") == 1, 30);
    chroma_again(a->server[1]);
    check_soon(told(p, "Server replica is up again") == 1, 30);
    flush(b, p, "by-the-second");
    check_int(told(p, "for-the-second"), 1);
    check_int(told(p, "Server replica is down"), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(a_killed_sender_loses_and_repeats_nothing_it_was_told_of),
        STAGE_TEST(many_kills_lose_nothing),
        STAGE_TEST(without_postgresql_people_are_told_and_it_is_recorded_later),
        STAGE_TEST(a_postgresql_that_hangs_delays_messages_only),
        STAGE_TEST(of_two_balancers_one_sends),
    };
    return STAGE_RUN(tests);
}
