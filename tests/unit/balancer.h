/* balancer.h: session, proxy and all below them in this process, two scripted Chroma servers and a
 * client on the same loop, and an engine of the journal that does what a test tells it.
 * Header-only, for the unit tests of proxy and journal. */
#ifndef BALANCER_H
#define BALANCER_H

#include "api_copies.h"
#include "copies.h"
#include "log.h"
#include "policy.h"
#include "pool.h"
#include "proxy.h"
#include "wires.h"

#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#define ID      "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
#define ON_A    "aaaaaaaa-8b86-4d01-b42d-00cf4fc964ff"
#define ON_B    "bbbbbbbb-8b86-4d01-b42d-00cf4fc964ff"
#define RECORDS "/api/v2/tenants/t/databases/d/collections/"

/* One connection at a time is enough: kept ones are closed by `Connection: close`. */
struct server {
    int fd, port, conn;
    ev_io door, io;
    ev_timer later;
    char got[8192]; /* the last request */
    size_t got_n;
    unsigned requests;
    char status[64]; /* of the answers: "200 OK" */
    char body[512];
};

static struct {
    struct ev_loop *loop;
    struct config *cfg;
    struct server a, b;
    int client; /* our end of the client's connection */
    char *answer;
    size_t answer_n, answer_size;
    bool closed;
} bal;

/* ---- servers ---- */

static void server_close(struct server *s)
{
    ev_io_stop(bal.loop, &s->io);
    ev_timer_stop(bal.loop, &s->later);
    if (s->conn >= 0)
        close(s->conn);
    s->conn = -1;
}

/* The body comes after the head: what reads it must not count on getting both at once. */
static void server_later(struct ev_loop *l, ev_timer *w, int revents)
{
    struct server *s = container_of(w, struct server, later);
    (void)!send(s->conn, s->body, strlen(s->body), MSG_NOSIGNAL);
    server_close(s);
}

static void server_read(struct ev_loop *l, ev_io *w, int revents)
{
    struct server *s = container_of(w, struct server, io);
    ssize_t n = recv(s->conn, s->got + s->got_n, sizeof s->got - 1 - s->got_n, 0);
    char out[1024];
    if (n > 0)
        s->got_n += (size_t)n;
    s->got[s->got_n] = 0;
    if (n > 0 && !strstr(s->got, "\r\n\r\n"))
        return;
    if (n > 0) {
        s->requests++;
        int len = snprintf(out, sizeof out,
                           "HTTP/1.1 %s\r\nContent-Type: application/json\r\nConnection: close\r\n"
                           "Content-Length: %zu\r\n\r\n",
                           s->status, strlen(s->body));
        (void)!send(s->conn, out, (size_t)len, MSG_NOSIGNAL);
        ev_io_stop(l, w);
        ev_timer_set(&s->later, 0.01, 0);
        ev_timer_start(l, &s->later);
        return;
    }
    server_close(s);
}

static void server_accept(struct ev_loop *l, ev_io *w, int revents)
{
    struct server *s = container_of(w, struct server, door);
    int fd = accept(s->fd, NULL, NULL);
    if (fd < 0)
        return;
    server_close(s);
    s->conn = fd;
    s->got_n = 0;
    ev_io_init(&s->io, server_read, fd, EV_READ);
    ev_io_start(l, &s->io);
}

static void server_start(struct server *s)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof at;
    *s = (struct server){.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), .conn = -1};
    assert_int_equal(bind(s->fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(s->fd, 16), 0);
    assert_int_equal(getsockname(s->fd, (struct sockaddr *)&at, &n), 0);
    s->port = ntohs(at.sin_port);
    ev_init(&s->later, server_later);
    ev_init(&s->io, server_read);
    strcpy(s->status, "200 OK");
    strcpy(s->body, "[]");
    ev_io_init(&s->door, server_accept, s->fd, EV_READ);
    ev_io_start(bal.loop, &s->door);
}

static void server_stop(struct server *s)
{
    ev_io_stop(bal.loop, &s->door);
    server_close(s);
    close(s->fd);
}

/* ---- Lua ---- */

/* Runs a chunk in the workflow VM; what it returns, as text. */
static const char *lua(const char *chunk)
{
    static char out[8192];
    lua_State *L = api_vm();
    if (luaL_loadstring(L, chunk) != 0 || lua_pcall(L, 0, 1, 0) != 0)
        fail_msg("%s", lua_tostring(L, -1));
    snprintf(out, sizeof out, "%s", lua_tostring(L, -1) ? lua_tostring(L, -1) : "nil");
    lua_pop(L, 1);
    return out;
}

static const char engine[] =
    "asked, gone, lost, looks = {}, {}, {}, {}\n"
    "package.preload['lb.journal'] = function()\n"
    "  return {\n"
    "    start = function(s) settings = s end,\n"
    "    reload = function(s) settings = s end,\n"
    "    submit = function(r) asked[#asked + 1] = r; if on_submit then on_submit(r) end end,\n"
    "    gone = function(t) gone[#gone + 1] = t end,\n"
    "    look = function(id) looks[#looks + 1] = id end,\n"
    "    wanted = function() end,\n"
    "    lost = function(c) lost[#lost + 1] = c.logical .. ' ' .. c.instance end,\n"
    "    stop = function() return true end,\n"
    "  }\n"
    "end\n"
    "answer, copies = package.loaded['chromux.answer'], package.loaded['chromux.copies']\n";

/* ---- the client ---- */

static void client_close(void)
{
    if (bal.client >= 0)
        close(bal.client);
    bal.client = -1;
}

static void client_open(void)
{
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int pair[2];
    client_close();
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    bal.client = pair[0];
    bal.answer_n = 0;
    bal.closed = false;
    session_start(pair[1], (struct sockaddr *)&peer, false);
}

/* Takes what has come; true when `text` is in it, or, with NULL, when the connection is closed. */
static bool heard(const char *text)
{
    char block[65536];
    ssize_t n;
    while ((n = recv(bal.client, block, sizeof block, 0)) > 0) {
        bal.answer = base_realloc(bal.answer, bal.answer_n + (size_t)n + 1);
        memcpy(bal.answer + bal.answer_n, block, (size_t)n);
        bal.answer_n += (size_t)n;
        bal.answer[bal.answer_n] = 0;
    }
    bal.closed = bal.closed || n == 0;
    return text ? bal.answer_n && strstr(bal.answer, text) : bal.closed;
}

/* Sends it all, turning the loop meanwhile; false when the socket stays full. */
static bool client_sends(const char *p, size_t n)
{
    double end = ev_time() + 1;
    while (n > 0 && ev_time() < end) {
        ssize_t w = send(bal.client, p, n, MSG_NOSIGNAL);
        if (w > 0) {
            p += w;
            n -= (size_t)w;
            end = ev_time() + 1;
        }
        (void)wires_turn(bal.loop, 0.001, NULL);
    }
    return n == 0;
}

static void say(const char *text)
{
    assert_true(client_sends(text, strlen(text)));
}

/* The text has come, or the test fails with what has. */
#define hears(text)                                                                                \
    do {                                                                                           \
        const char *part_ = text;                                                                  \
        if (!wires_until(bal.loop, heard(part_)))                                                  \
            fail_msg("line %d: no '%s' in: %s", __LINE__, part_ ? part_ : "end",                   \
                     bal.answer_n ? bal.answer : "");                                              \
    } while (0)

/* ---- all together ---- */

static struct config *config_of(const char *const *settings)
{
    struct config_raws raws = {0};
    struct buf errors;
    char instances[160];
    buf_init(&errors, 65536);
    snprintf(instances, sizeof instances,
             "a=http://127.0.0.1:%d,priority=2;b=http://127.0.0.1:%d,priority=1", bal.a.port,
             bal.b.port);
    config_raws_add(&raws, "CHROMA_INSTANCES", instances, CONFIG_TEXT, "--set");
    for (; settings && *settings; settings += 2)
        config_raws_add(&raws, settings[0], settings[1], CONFIG_TEXT, "--set");
    struct config *c = config_build(&raws, &errors);
    if (!c)
        fail_msg("%.*s", (int)buf_len(&errors), buf_data(&errors));
    config_raws_fini(&raws);
    buf_fini(&errors);
    return c;
}

/* settings: pairs, ended by NULL. Collection ID of tenant t, database d lies on a as ON_A and on b
 * as ON_B, both up to date. */
static void balancer_start(const char *const *settings)
{
    struct buf errors;
    static struct dns *dns; /* the pool's observers are for ever, and so is what it has */
    const char *why;
    buf_init(&errors, 65536);
    memset(&bal, 0, sizeof bal);
    bal.client = -1;
    bal.loop = ev_default_loop(EVFLAG_AUTO);
    log_set_fd(-1);
    if (!dns) {
        stream_start(bal.loop);
        wheel_start(bal.loop);
        dns = dns_new(bal.loop, "127.0.0.1", &why);
        assert_non_null(dns);
        pool_start(NULL, dns);
    }
    server_start(&bal.a);
    server_start(&bal.b);
    bal.cfg = config_of(settings);
    assert_true(access_start(bal.loop, "off", false));
    assert_true(api_start(bal.loop, "", &errors));
    session_shared.cfg = bal.cfg;
    session_shared.proxy = &proxy_handler;
    session_shared.stopping = false;
    pool_reload(bal.cfg);
    proxy_start(bal.cfg);
    fleet_configure(bal.cfg, ev_now(bal.loop));
    for (unsigned i = 0; i < fleet_count; i++)
        fleet_set_health(fleet_node[i], NULL, NODE_UP, "the test says so", ev_now(bal.loop));
    assert_true(wires_until(bal.loop, fleet_node[0]->addr_len && fleet_node[1]->addr_len));
    api_copies_open(api_vm());
    lua(engine);
    copies_expected = copies_on = true;
    copies_collection_set(ID, STR("t"), STR("d"), 10);
    assert_true(copies_copy_set(ID, STR("a"), ON_A, 10, true));
    assert_true(copies_copy_set(ID, STR("b"), ON_B, 10, true));
    client_open();
    buf_fini(&errors);
}

static void balancer_stop(void)
{
    session_kill_all();
    proxy_stop();
    client_close();
    pool_stop();
    fleet_free_all();
    api_stop();
    access_stop();
    policy_unload();
    copies_clear();
    copies_expected = copies_on = false;
    server_stop(&bal.a);
    server_stop(&bal.b);
    config_free(bal.cfg);
    free(bal.answer);
}

#endif
