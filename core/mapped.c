/* mapped.c: checks ids and bounds, swaps ids, and tells the journal of copies that are lost. */
#include "mapped.h"

#include "api.h"
#include "courier.h"
#include "log.h"
#include "stream.h"

#include <ev.h>
#include <stdio.h>
#include <stdlib.h>

enum { ID = 36 };

const char mapped_bad_bound[] =
    "X-Chromux-Max-Behind must be a whole number of journal entries, once";

bool mapped_read_bound(const struct http1_head *h, bool *bounded, uint64_t *n)
{
    *bounded = false;
    *n = 0;
    for (unsigned i = 0; i < h->count; i++) {
        const struct http1_field *f = &h->field[i];
        if (f->id != HTTP1_OTHER || !str_eq_nocase(f->name, STR("X-Chromux-Max-Behind")))
            continue;
        if (*bounded || f->value.n == 0 || f->value.n > 15)
            return false;
        *bounded = true;
        for (size_t k = 0; k < f->value.n; k++) {
            if (f->value.p[k] < '0' || f->value.p[k] > '9')
                return false;
            *n = *n * 10 + (uint64_t)(f->value.p[k] - '0');
        }
    }
    return true;
}

/* Chroma does not check this (up to 1.5.9). */
static bool belongs(const struct collection *c, const struct route *t)
{
    char *text = base_alloc(t->tenant.n + t->database.n + 1);
    struct str tenant = {text, route_decode(t->tenant, text)};
    struct str database = {text + tenant.n, route_decode(t->database, text + tenant.n)};
    bool same = copies_belongs(c, tenant, database);
    free(text);
    return same;
}

void mapped_tell_unknown(const struct mapped *m, char text[MAPPED_TEXT_MAX])
{
    snprintf(text, MAPPED_TEXT_MAX, "Collection [%s] does not exists.", m->id);
}

enum end_reason mapped_start(struct mapped *m, const struct route *t, const struct http1_head *h,
                             char text[MAPPED_TEXT_MAX])
{
    bool bounded;
    if (!copies_on) {
        snprintf(text, MAPPED_TEXT_MAX, "the journal is being loaded");
        return END_JOURNAL_AWAY;
    }
    if (!mapped_read_bound(h, &bounded, &m->max_behind)) {
        snprintf(text, MAPPED_TEXT_MAX, "%s", mapped_bad_bound);
        return END_BAD_REQUEST;
    }
    if (!route_segment_uuid(t->collection, m->id)) {
        m->id[0] = 0;
        snprintf(text, MAPPED_TEXT_MAX, "Collection ID is not a valid UUIDv4"); /* Chroma's words */
        return END_BAD_REQUEST;
    }
    m->on = true;
    m->unknown = !copies_find(m->id);
    m->sure = true;
    return m->unknown ? END_NONE : mapped_found(m, t, text);
}

/* ---- collections that are not known yet ---- */

static struct mapped *asked;
static ev_timer turn; /* fed, never started */

static void on_turn(struct ev_loop *l, ev_timer *w, int revents)
{
    for (;;) {
        struct mapped **at = &asked, *m;
        while (*at && !(*at)->due)
            at = &(*at)->next;
        if (!(m = *at))
            return;
        *at = m->next;
        m->unknown = false;
        m->looked(m); /* may free m, and change the list */
    }
}

static void on_looked(const char *logical, bool sure)
{
    for (struct mapped *m = asked; m; m = m->next)
        if (memcmp(m->id, logical, ID) == 0) {
            m->due = true;
            m->sure = sure;
        }
    ev_feed_event(stream_loop(), &turn, EV_CUSTOM);
}

bool mapped_ask(struct mapped *m, void (*looked)(struct mapped *m))
{
    bool first = true;
    if (!m->on || !m->unknown)
        return false;
    for (struct mapped *o = asked; o; o = o->next)
        first = first && (o->due || memcmp(o->id, m->id, ID) != 0);
    m->looked = looked;
    m->next = asked;
    asked = m;
    if (!copies_looked) {
        ev_init(&turn, on_turn);
        copies_looked = on_looked;
    }
    if (!first)
        return true;
    lua_pushstring(api_vm(), m->id);
    if (api_call("lb.journal", "look", 1))
        lua_pop(api_vm(), 1);
    else
        on_looked(m->id, false);
    return true;
}

enum end_reason mapped_found(struct mapped *m, const struct route *t, char text[MAPPED_TEXT_MAX])
{
    const struct collection *c = copies_find(m->id);
    if (c && belongs(c, t))
        return END_NONE;
    m->on = false;
    mapped_tell_unknown(m, text);
    if (c || m->sure)
        return END_NOT_FOUND;
    snprintf(text, MAPPED_TEXT_MAX, "PostgreSQL does not answer: is there such a collection?");
    return END_JOURNAL_AWAY;
}

void mapped_forget(struct mapped *m)
{
    for (struct mapped **at = &asked; m->unknown && *at; at = &(*at)->next)
        if (*at == m) {
            *at = m->next;
            m->unknown = false;
            return;
        }
}

const struct collection *mapped_collection(const struct mapped *m)
{
    return m->on ? copies_find(m->id) : NULL;
}

static void tell_copy(const struct mapped *m, const struct node *n, char *out, size_t size)
{
    const struct collection *c = mapped_collection(m);
    out[0] = 0;
    if (c && !copies_physical(c, n))
        snprintf(out, size, ", has no copy");
    else if (c && !copies_may_read(c, n, UINT64_MAX))
        snprintf(out, size, ", its copy is not to be read");
    else if (c)
        snprintf(out, size, ", %llu entries behind", (unsigned long long)copies_behind(c, n));
}

void mapped_tell_states(const struct mapped *m, bool primary_only, uint64_t tried, char *out,
                        size_t size)
{
    size_t n = 0;
    out[0] = 0;
    for (unsigned i = 0; i < fleet_count && n + 1 < size; i++) {
        const struct node *node = fleet_node[i];
        if (primary_only && node->role != CONFIG_PRIMARY)
            continue;
        const char *state = node->admin != NODE_READY ? fleet_admin_name(node->admin)
                            : node->addr_len == 0     ? "unresolved"
                            : tried >> node->id & 1   ? "tried"
                                                      : fleet_health_name(node->health);
        const char *why = node->history.last_error;
        char copy[48];
        tell_copy(m, node, copy, sizeof copy);
        int w = snprintf(out + n, size - n, "%s%s is %s%s%s%s%s",
                         n == 0  ? ""
                         : m->on ? "; "
                                 : ", ",
                         node->name, state, *why ? " (" : "", why, *why ? ")" : "", copy);
        n += w > 0 ? (size_t)w : 0;
    }
}

bool mapped_copy_is_coming(const struct mapped *m, uint64_t tried)
{
    const struct collection *c = mapped_collection(m);
    for (unsigned i = 0; c && i < fleet_count; i++)
        if (!(tried >> fleet_node[i]->id & 1) && copies_physical(c, fleet_node[i]) &&
            fleet_can_serve(fleet_node[i], m->id, true))
            return true;
    return false;
}

void mapped_want(const struct mapped *m)
{
    lua_pushstring(api_vm(), m->id);
    if (api_call("lb.journal", "wanted", 1))
        lua_pop(api_vm(), 1);
}

bool mapped_may_read(const struct mapped *m, const struct node *n, uint64_t max_behind)
{
    const struct collection *c = mapped_collection(m);
    if (!m->on)
        return true;
    return c && copies_may_read(c, n, max_behind) &&
           (!courier_started() || courier_incarnation(n) != 0);
}

bool mapped_may_send(const struct mapped *m, struct node *n)
{
    if (!m->on)
        return true;
    if (courier_started())
        (void)courier_look(n);
    return mapped_may_read(m, n, m->max_behind) &&
           strcmp(copies_physical(mapped_collection(m), n), m->physical) == 0;
}

bool mapped_begin_try(struct mapped *m, const struct node *n, char *head)
{
    const struct collection *c = mapped_collection(m);
    m->lost = false;
    if (!c || !mapped_may_read(m, n, m->max_behind))
        return false;
    memcpy(m->physical, copies_physical(c, n), sizeof m->physical);
    memcpy(head + m->at, m->physical, ID);
    return true;
}

bool mapped_read_error(struct mapped *m, int status, char *body, size_t size)
{
    char *at = body, *end = body + size;
    while (size && (at = memmem(at, (size_t)(end - at), m->physical, ID))) {
        m->lost = status == 404;
        memcpy(at, m->id, ID);
        at += ID;
    }
    return m->lost;
}

bool mapped_lose(const struct mapped *m, const struct node *n)
{
    const struct collection *c = mapped_collection(m);
    const char *current = c ? copies_physical(c, n) : NULL;
    lua_State *L = api_vm();
    if (!current || strcmp(current, m->physical) != 0)
        return false;
    log_warn("copy_lost", "collection=%s instance=%s id=%s", m->id, n->name, m->physical);
    copies_copy_drop(m->id, str_from(n->name));
    lua_createtable(L, 0, 3);
    lua_pushstring(L, m->id);
    lua_setfield(L, -2, "logical");
    lua_pushstring(L, m->physical);
    lua_setfield(L, -2, "physical");
    lua_pushstring(L, n->name);
    lua_setfield(L, -2, "instance");
    if (api_call("lb.journal", "lost", 1))
        lua_pop(L, 1);
    return true;
}
