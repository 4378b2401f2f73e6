/* engine.c: the life of the one engine of this process. */
#include "engine.h"

#include <stdlib.h>

static const char *const modules[ROLE_COUNT] = {"lb.notify", "lb.sync", "lb.sync", "lb.monitor"};

static const struct config *cfg;
static enum role role;

static void set_text(lua_State *L, const char *key, const char *v)
{
    lua_pushstring(L, v);
    lua_setfield(L, -2, key);
}

static void set_number(lua_State *L, const char *key, double v)
{
    lua_pushnumber(L, v);
    lua_setfield(L, -2, key);
}

static void put_setting(void *arg, const char *name, enum config_kind kind, const char *text)
{
    lua_State *L = arg;
    if (kind == CONFIG_NUMBER)
        lua_pushnumber(L, strtod(text, NULL));
    else if (kind == CONFIG_BOOLEAN)
        lua_pushboolean(L, strcmp(text, "true") == 0);
    else
        lua_pushstring(L, text);
    lua_setfield(L, -2, name);
}

void engine_push_settings(lua_State *L, const struct config *c)
{
    lua_newtable(L);
    config_each(c, put_setting, L);
    lua_newtable(L);
    for (unsigned i = 0; i < c->instance_count; i++) {
        const struct config_instance *in = &c->instance[i];
        lua_newtable(L);
        set_text(L, "name", in->name);
        set_text(L, "url", in->url);
        set_text(L, "host", in->host);
        set_number(L, "port", in->port);
        set_text(L, "role", in->role == CONFIG_PRIMARY ? "primary" : "replica");
        set_number(L, "priority", (double)in->priority);
        set_number(L, "weight", (double)in->weight);
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "instances");
}

static void push_secrets(lua_State *L, const struct config *c)
{
    lua_newtable(L);
    set_text(L, "SLACK_WEBHOOK_URL", c->slack_webhook_url);
    set_text(L, "WEBHOOK_URL", c->webhook_url);
    lua_setfield(L, -2, "secrets");
}

void engine_give_settings(lua_State *L, const struct config *c)
{
    luaL_findtable(L, LUA_REGISTRYINDEX, "_LOADED", 8);
    engine_push_settings(L, c);
    push_secrets(L, c);
    lua_setfield(L, -2, "chromux.settings");
    lua_pop(L, 1);
}

static void push_all(lua_State *L)
{
    engine_push_settings(L, cfg);
    set_text(L, "role", role_name(role));
    if (role == ROLE_BALANCER)
        push_secrets(L, cfg);
}

bool engine_start(enum role r, const struct config *c, struct buf *error)
{
    cfg = c;
    role = r;
    push_all(api_vm());
    if (!api_call(modules[role], "start", 1)) {
        cfg = NULL;
        buf_printf(error, "%s can't be started; see the error log\n", modules[role]);
        return false;
    }
    lua_pop(api_vm(), 1);
    return true;
}

void engine_reload(const struct config *c)
{
    if (!cfg)
        return;
    cfg = c;
    push_all(api_vm());
    if (api_call(modules[role], "reload", 1))
        lua_pop(api_vm(), 1);
}

bool engine_finished(void)
{
    bool over = true;
    if (cfg && api_call(modules[role], "stop", 0)) {
        over = lua_toboolean(api_vm(), -1) || lua_isnil(api_vm(), -1);
        lua_pop(api_vm(), 1);
    }
    return over;
}

const char *engine_module(void)
{
    return cfg ? modules[role] : NULL;
}

void engine_stop(void)
{
    cfg = NULL;
}
