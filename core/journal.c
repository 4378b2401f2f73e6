/* journal.c: owns the requests that wait for the journal, by ticket, and the memory of their
 * bodies.
 *
 * A request waits for memory, collects its body, is asked of Lua, and is answered. It holds a share
 * of JOURNAL_MEMORY_BYTES from before its body is read until it ends: a body of known length takes
 * its length at once, a chunked one a step at a time. Those that wait stand in one queue; one that
 * holds a share already goes to the front, and is refused instead when nobody else could give
 * memory back. Answers, and memory that came free, are dealt out in an event of their own, so that
 * nothing here runs below Lua. */
#include "journal.h"

#include "engine.h"
#include "log.h"
#include "mapped.h"
#include "metrics.h"

#include <ev.h>
#include <stdio.h>
#include <stdlib.h>

enum { STEP = 1 << 20, SLACK = 65536, KEY_MAX = 200, SLOT_BITS = 20 };

/* Seconds that Lua gets beyond REQUEST_TIMEOUT to answer. */
#define GRACE 5.0

enum phase { COLLECTING, ASKED, ANSWERED };

/* What Lua said; texts are ours. */
struct answer {
    enum end_reason refusal; /* END_NONE: an answer to send */
    int status;
    unsigned retry_after;
    char *type, *fields, *instance, *text; /* fields, instance: may be NULL */
    size_t n;                              /* of text */
};

struct journalled {
    struct request *r;
    struct journalled *next, *prev; /* in the queue for memory */
    struct journalled *answered;    /* the next one that is to be answered */
    enum phase phase;
    uint64_t share;                                /* of the memory */
    uint64_t want;                                 /* over 0: in the queue for so much more */
    double deadline;                               /* loop time: REQUEST_TIMEOUT */
    uint64_t ticket;                               /* when ASKED or ANSWERED */
    struct str query, type, key, token, forwarded; /* inside r->text */
    bool bounded;
    uint64_t max_behind; /* when bounded */
    struct answer answer;
};

static const struct config *cfg;
static struct journalled queue = {.next = &queue, .prev = &queue};
static uint64_t used, stuck;     /* memory; the part held by those in the queue */
static struct journalled **slot; /* by the low bits of a ticket */
static uint32_t *free_slot;
static unsigned slots, free_slots;
static uint64_t serial;
static struct journalled *to_answer;
static ev_timer turn; /* fed, never started */

static double now(void)
{
    return base_clock();
}

static void wake(void)
{
    ev_feed_event(stream_loop(), &turn, EV_CUSTOM);
}

/* ---- tickets ---- */

static void ticket_take(struct journalled *j)
{
    if (free_slots == 0) {
        unsigned was = slots;
        slots = was ? 2 * was : 64;
        must(slots <= 1u << SLOT_BITS); /* MAX_CLIENTS is less */
        slot = base_realloc(slot, slots * sizeof *slot);
        free_slot = base_realloc(free_slot, slots * sizeof *free_slot);
        for (unsigned i = slots; i-- > was;)
            free_slot[free_slots++] = i;
    }
    uint32_t at = free_slot[--free_slots];
    /* 2^33 of them until a number comes again: a Lua number holds 53 bits. */
    serial = (serial + 1) & ((UINT64_C(1) << 33) - 1);
    slot[at] = j;
    j->ticket = serial << SLOT_BITS | at;
}

static void ticket_give(struct journalled *j)
{
    uint32_t at = j->ticket & ((1u << SLOT_BITS) - 1);
    slot[at] = NULL;
    free_slot[free_slots++] = at;
}

static struct journalled *ticket_find(double ticket)
{
    uint64_t t = ticket >= 0 && ticket < 9007199254740992.0 ? (uint64_t)ticket : 0;
    uint32_t at = t & ((1u << SLOT_BITS) - 1);
    struct journalled *j = at < slots ? slot[at] : NULL;
    return j && j->ticket == t && j->phase == ASKED ? j : NULL;
}

/* ---- memory ---- */

static void queue_leave(struct journalled *j)
{
    if (!j->want)
        return;
    j->prev->next = j->next;
    j->next->prev = j->prev;
    j->want = 0;
    stuck -= j->share;
    gauge_add(JOURNAL_WAITING, -1);
}

static void queue_join(struct journalled *j, uint64_t want)
{
    struct journalled *before = j->share ? queue.next : &queue;
    j->want = want;
    j->next = before;
    j->prev = before->prev;
    j->prev->next = j;
    before->prev = j;
    stuck += j->share;
    gauge_add(JOURNAL_WAITING, 1);
}

static void take(struct journalled *j, uint64_t n)
{
    j->share += n;
    used += n;
    gauge_set(JOURNAL_BYTES, (int64_t)used);
}

/* Memory that nobody else holds is given whatever the limit says now: a reload may have lowered it
 * below what was promised. */
static bool fits(const struct journalled *j, uint64_t n)
{
    return used + n <= (uint64_t)cfg->journal_memory || used == j->share;
}

/* ---- endings ---- */

static void answer_fini(struct answer *a)
{
    free(a->type);
    free(a->fields);
    free(a->instance);
    free(a->text);
}

static struct request *journalled_free(struct journalled *j)
{
    struct request *r = j->r;
    queue_leave(j);
    used -= j->share;
    gauge_set(JOURNAL_BYTES, (int64_t)used);
    if (j->phase != COLLECTING)
        ticket_give(j);
    if (j->phase == ANSWERED)
        for (struct journalled **at = &to_answer; *at; at = &(*at)->answered)
            if (*at == j) {
                *at = j->answered;
                break;
            }
    answer_fini(&j->answer);
    free(j);
    r->state = NULL;
    if (queue.next != &queue)
        wake();
    return r;
}

static void refuse(struct journalled *j, enum end_reason why, const char *text)
{
    struct request *r = journalled_free(j);
    snprintf(r->detail, sizeof r->detail, "%.120s", text);
    request_error(r, why, "%s", text);
}

static void tell_gone(const struct journalled *j)
{
    if (j->phase != ASKED)
        return;
    lua_pushnumber(api_vm(), (double)j->ticket);
    if (api_call("lb.journal", "gone", 1))
        lua_pop(api_vm(), 1);
}

/* ---- what Lua is asked ---- */

static void set_str(lua_State *L, const char *key, struct str s)
{
    lua_pushlstring(L, s.p ? s.p : "", s.n);
    lua_setfield(L, -2, key);
}

static void set_text(lua_State *L, const char *key, const char *s)
{
    set_str(L, key, str_from(s));
}

static void set_number(lua_State *L, const char *key, double v)
{
    lua_pushnumber(L, v);
    lua_setfield(L, -2, key);
}

static void set_bool(lua_State *L, const char *key, bool v)
{
    lua_pushboolean(L, v);
    lua_setfield(L, -2, key);
}

static void set_decoded(lua_State *L, const char *key, struct str s)
{
    if (s.n == 0)
        return;
    char *out = lua_newuserdata(L, s.n);
    lua_pushlstring(L, out, route_decode(s, out));
    lua_setfield(L, -3, key);
    lua_pop(L, 1);
}

static void set_collection(lua_State *L, const struct route *t)
{
    char id[37];
    if (!t->by_name && t->collection.n && route_segment_uuid(t->collection, id))
        set_text(L, "collection", id);
    else
        set_decoded(L, "collection", t->collection);
}

/* Makes the table, under lua_cpcall since a body may be more than the VM has room for; it is found
 * in the registry by this function's address. */
static int make_request(lua_State *L)
{
    const struct journalled *j = lua_touserdata(L, 1);
    const struct request *r = j->r;
    lua_pushlightuserdata(L, (void *)make_request);
    lua_createtable(L, 0, 20);
    set_number(L, "ticket", (double)j->ticket);
    set_text(L, "method", r->method_text);
    set_text(L, "action", r->route.action);
    set_text(L, "class", route_class_name(r->route.class));
    set_bool(L, "reads", r->route.reads);
    set_decoded(L, "tenant", r->route.tenant);
    set_decoded(L, "database", r->route.database);
    set_collection(L, &r->route);
    set_bool(L, "by_name", r->route.by_name);
    set_str(L, "target", r->target);
    set_str(L, "query", j->query);
    set_str(L, "type", j->type);
    if (j->key.n)
        set_str(L, "key", j->key);
    if (j->token.n)
        set_str(L, "token", j->token);
    if (j->forwarded.n)
        set_str(L, "forwarded", j->forwarded);
    set_text(L, "id", r->id);
    set_str(L, "body", (struct str){buf_data(&r->body.bytes), buf_len(&r->body.bytes)});
    set_number(L, "deadline", api_now() + j->deadline - now());
    if (j->bounded)
        set_number(L, "max_behind", (double)j->max_behind);
    lua_rawset(L, LUA_REGISTRYINDEX);
    return 0;
}

static void take_request(lua_State *L)
{
    lua_pushlightuserdata(L, (void *)make_request);
    lua_rawget(L, LUA_REGISTRYINDEX);
    lua_pushlightuserdata(L, (void *)make_request);
    lua_pushnil(L);
    lua_rawset(L, LUA_REGISTRYINDEX); /* the key is there: nothing is allocated */
}

/* The body is whole. May end the request. */
static void submit(struct journalled *j)
{
    lua_State *L = api_vm();
    struct request *r = j->r;
    ticket_take(j);
    j->phase = ASKED;
    if (lua_cpcall(L, make_request, j) != 0) {
        lua_pop(L, 1);
        refuse(j, END_JOURNAL_AWAY, "the journal has no memory left for this request");
        return;
    }
    buf_fini(&r->body.bytes); /* Lua has it now */
    request_arm(r, j->deadline + GRACE);
    take_request(L);
    if (api_call("lb.journal", "submit", 1))
        lua_pop(L, 1);
    else if (r->route.reads)
        refuse(j, END_JOURNAL_AWAY, "the journal failed; see the error log");
    else
        refuse(j, END_OUTCOME_UNKNOWN,
               "the journal failed; whether this write was kept is not known");
}

/* ---- the body ---- */

static void on_limit(struct journalled *j)
{
    char text[160];
    snprintf(text, sizeof text,
             "the request body is larger than all bodies together may be (JOURNAL_MEMORY_BYTES, "
             "%ld)",
             cfg->journal_memory);
    refuse(j, END_BODY_TOO_BIG, text);
}

/* How much of the body the share allows; beyond MAX_BODY_BYTES there must be room to see that the
 * body is too big, or that it has ended. */
static size_t allowed(const struct journalled *j)
{
    uint64_t n = j->share;
    if (n >= (uint64_t)cfg->max_body || j->r->body.framing != HTTP1_CHUNKED)
        n += SLACK;
    return n < 1u << 30 ? (size_t)n : 1u << 30;
}

/* The share covers what is to come. May end the request. */
static void collect(struct journalled *j)
{
    if (j->r->body.done) {
        submit(j);
        return;
    }
    body_keep(&j->r->body, allowed(j));
    request_want_body(j->r);
}

/* Takes n bytes more, or queues for them, and stops reading so long. May end the request. */
static void ask_memory(struct journalled *j, uint64_t n)
{
    if (j->share + n > (uint64_t)cfg->journal_memory) {
        on_limit(j);
        return;
    }
    if ((queue.next == &queue || j->share) && fits(j, n)) {
        take(j, n);
        collect(j);
        return;
    }
    if (j->share && used == stuck + j->share) {
        refuse(j, END_JOURNAL_AWAY,
               "the journal's memory (JOURNAL_MEMORY_BYTES) is used up by unfinished bodies");
        return;
    }
    size_t there = buf_len(&j->r->body.bytes);
    body_keep(&j->r->body, there ? there : 1);
    queue_join(j, n);
}

static void grow(struct journalled *j)
{
    uint64_t left = (uint64_t)cfg->journal_memory - j->share;
    if (j->share >= (uint64_t)cfg->journal_memory)
        on_limit(j);
    else
        ask_memory(j, left < STEP ? left : STEP);
}

/* ---- answers, and memory that came free ---- */

static void deliver(struct journalled *j)
{
    struct answer a = j->answer;
    j->answer = (struct answer){0};
    struct request *r = journalled_free(j);
    if (a.refusal != END_NONE) {
        snprintf(r->detail, sizeof r->detail, "%.120s", a.text);
        request_refuse(r, a.refusal, a.retry_after, a.text);
    } else {
        if (a.instance) {
            snprintf(r->instance, sizeof r->instance, "%s", a.instance);
            r->from_instance = true;
        }
        request_answer(r, a.status, a.type, (struct str){a.text, a.n}, a.fields, END_DONE);
    }
    answer_fini(&a);
}

static void on_turn(struct ev_loop *l, ev_timer *w, int revents)
{
    while (to_answer) {
        struct journalled *j = to_answer;
        deliver(j); /* takes it off */
    }
    while (queue.next != &queue && fits(queue.next, queue.next->want)) {
        struct journalled *j = queue.next;
        uint64_t n = j->want;
        queue_leave(j);
        take(j, n);
        collect(j);
    }
}

/* The answer's place behind those that were given before; its texts are filled in by the caller. */
static struct answer *answer_begin(struct journalled *j)
{
    struct journalled **at = &to_answer;
    while (*at)
        at = &(*at)->answered;
    *at = j;
    j->answered = NULL;
    j->phase = ANSWERED;
    wake();
    return &j->answer;
}

static char *copy_of(const char *p, size_t n)
{
    char *out = base_alloc(n + 1);
    memcpy(out, p, n);
    out[n] = 0;
    return out;
}

static int lua_send(lua_State *L)
{
    int status = luaL_checkint(L, 2);
    const char *type = luaL_optstring(L, 3, "");
    size_t n;
    const char *body = luaL_optlstring(L, 4, "", &n);
    const char *fields = luaL_optstring(L, 5, NULL), *instance = luaL_optstring(L, 6, NULL);
    luaL_argcheck(L, status >= 200 && status <= 599 && status != 204 && status != 304, 2,
                  "a status that may have a body");
    luaL_argcheck(L, !instance || strlen(instance) <= CONFIG_NAME_MAX, 6, "an instance's name");
    struct journalled *j = ticket_find(luaL_checknumber(L, 1));
    lua_pushboolean(L, j != NULL);
    if (!j)
        return 1;
    struct answer *a = answer_begin(j);
    a->status = status;
    a->type = base_strdup(type);
    a->text = copy_of(body, n);
    a->n = n;
    a->fields = fields ? base_strdup(fields) : NULL;
    a->instance = instance ? base_strdup(instance) : NULL;
    return 1;
}

static int lua_refuse(lua_State *L)
{
    const char *name = luaL_checkstring(L, 2);
    const char *text = luaL_checkstring(L, 3);
    int retry_after = luaL_optint(L, 4, 0);
    unsigned why = END_NONE + 1;
    while (why < END_COUNT && strcmp(end_name((enum end_reason)why), name) != 0)
        why++;
    luaL_argcheck(L, why < END_COUNT && end_status((enum end_reason)why) != 0, 2,
                  "an end reason with a status");
    luaL_argcheck(L, retry_after >= 0, 4, "seconds");
    struct journalled *j = ticket_find(luaL_checknumber(L, 1));
    lua_pushboolean(L, j != NULL);
    if (!j)
        return 1;
    struct answer *a = answer_begin(j);
    a->refusal = (enum end_reason)why;
    a->retry_after = (unsigned)retry_after;
    a->text = copy_of(text, strlen(text));
    return 1;
}

/* ---- the handler ---- */

static bool visible(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if (s.p[i] < 0x21 || s.p[i] > 0x7e)
            return false;
    return s.n >= 1 && s.n <= KEY_MAX;
}

static struct str keep(struct request *r, struct str s)
{
    struct str kept = {buf_data(&r->text) + buf_len(&r->text), s.n};
    buf_put_str(&r->text, s);
    return kept;
}

/* Takes over what the head says; end reason and *why when it can't be journalled. */
static enum end_reason read_head(struct journalled *j, const struct http1_head *h, const char **why)
{
    struct request *r = j->r;
    const char *mem = r->text.mem;
    j->query = keep(r, h->query);
    for (unsigned i = 0; i < h->count; i++) {
        const struct http1_field *f = &h->field[i];
        if (f->id == HTTP1_CONTENT_TYPE) {
            j->type = keep(r, f->value);
        } else if (f->id != HTTP1_OTHER) {
            continue;
        } else if (str_eq_nocase(f->name, STR("Content-Encoding"))) {
            if (!r->route.reads && f->value.n && !str_eq_nocase(f->value, STR("identity"))) {
                *why = "Content-Encoding must be identity: Chroma takes no compressed bodies";
                return END_CONTENT_CODING;
            }
        } else if (str_eq_nocase(f->name, STR("Idempotency-Key"))) {
            if (j->key.n || !visible(f->value)) {
                *why = "Idempotency-Key must be 1 to 200 visible ASCII bytes, once";
                return END_BAD_REQUEST;
            }
            j->key = keep(r, f->value);
        } else if (str_eq_nocase(f->name, STR("X-Chromux-Token"))) {
            if (j->token.n || !visible(f->value)) {
                *why = "X-Chromux-Token must be 1 to 200 visible ASCII bytes, once";
                return END_BAD_REQUEST;
            }
            j->token = keep(r, f->value);
        } else if (str_eq_nocase(f->name, STR("X-Chromux-Forwarded"))) {
            j->forwarded = keep(r, f->value);
        }
    }
    must(r->text.mem == mem); /* session.c made room for more than the head */
    if (!mapped_read_bound(h, &j->bounded, &j->max_behind)) {
        *why = mapped_bad_bound;
        return END_BAD_REQUEST;
    }
    return END_NONE;
}

static void start(struct request *r, struct http1_head *h)
{
    struct journalled *j = base_zalloc(sizeof *j);
    const char *why = NULL;
    j->r = r;
    j->deadline = now() + cfg->request_timeout;
    r->state = j;
    enum end_reason bad = read_head(j, h, &why);
    if (bad != END_NONE) {
        refuse(j, bad, why);
        return;
    }
    if (!copies_on) {
        refuse(j, END_JOURNAL_AWAY, "the journal is being loaded");
        return;
    }
    request_arm(r, j->deadline);
    uint64_t size = r->body.done                       ? r->body.seen
                    : r->body.framing == HTTP1_CHUNKED ? STEP
                                                       : r->body.length;
    if (r->body.framing == HTTP1_CHUNKED && size > (uint64_t)cfg->journal_memory)
        size = (uint64_t)cfg->journal_memory;
    if (size < r->body.seen)
        size = r->body.seen; /* it came with the head */
    if (size)
        ask_memory(j, size);
    else
        submit(j);
}

static void more(struct request *r)
{
    struct journalled *j = r->state;
    if (j->phase != COLLECTING || j->want)
        return;
    if (r->body.done)
        submit(j);
    else if (buf_room(&r->body.bytes) == 0)
        grow(j);
    else
        request_want_body(r);
}

static void drained(struct request *r)
{
}

static void late(struct request *r)
{
    struct journalled *j = r->state;
    if (j->phase == COLLECTING) {
        if (j->want)
            refuse(j, END_JOURNAL_AWAY,
                   "the journal's memory (JOURNAL_MEMORY_BYTES) was used up by other bodies");
        else
            refuse(j, END_CLIENT_SLOW_BODY,
                   "the request body did not arrive within REQUEST_TIMEOUT");
        return;
    }
    tell_gone(j);
    refuse(j, END_OUTCOME_UNKNOWN,
           r->route.reads ? "the journal did not answer within REQUEST_TIMEOUT"
                          : "the journal did not answer within REQUEST_TIMEOUT; whether this write "
                            "was kept is not known");
}

static void gone(struct request *r)
{
    struct journalled *j = r->state;
    tell_gone(j);
    (void)journalled_free(j);
}

const struct handler journal_handler = {start, more, drained, late, gone};

/* ---- life ---- */

static int open_answer(lua_State *L)
{
    static const luaL_Reg functions[] = {{"send", lua_send}, {"refuse", lua_refuse}, {NULL, NULL}};
    luaL_findtable(L, LUA_REGISTRYINDEX, "_LOADED", 8);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    lua_setfield(L, -2, "chromux.answer");
    return 0;
}

bool journal_start(const struct config *c, struct buf *error)
{
    lua_State *L = api_vm();
    cfg = c;
    ev_init(&turn, on_turn);
    copies_expected = true;
    must(lua_cpcall(L, open_answer, NULL) == 0);
    engine_push_settings(L, cfg);
    if (!api_call("lb.journal", "start", 1)) {
        buf_printf(error, "the journal can't be started; see the error log\n");
        return false;
    }
    lua_pop(L, 1);
    return true;
}

void journal_reload(const struct config *c)
{
    if (!cfg)
        return;
    cfg = c;
    wake(); /* there may be more memory */
    engine_push_settings(api_vm(), cfg);
    if (api_call("lb.journal", "reload", 1))
        lua_pop(api_vm(), 1);
}

bool journal_finished(void)
{
    bool over = true;
    if (cfg && api_call("lb.journal", "stop", 0)) {
        over = lua_toboolean(api_vm(), -1) || lua_isnil(api_vm(), -1);
        lua_pop(api_vm(), 1);
    }
    return over;
}

void journal_stop(void)
{
    if (!cfg)
        return;
    must(queue.next == &queue && !to_answer && used == 0);
    ev_clear_pending(stream_loop(), &turn);
    free(slot);
    free(free_slot);
    slot = NULL;
    free_slot = NULL;
    slots = free_slots = 0;
    cfg = NULL;
    copies_expected = copies_on = false;
    copies_clear();
}
