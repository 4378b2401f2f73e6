/* pg_lua.c: owns the metatable that marks a bytea, in each VM's registry.
 *
 * Numbers need a text of their own; it lies in the userdata, behind the values, so that any number
 * of parameters takes one place on Lua's stack. */
#include "pg_lua.h"

#include "buf.h"

#include <lauxlib.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define EXACT_MOST     9007199254740992.0 /* 2^53 */
#define NUMBER_SIZE    32
#define PARAMS_MAX     65535
#define STATEMENTS_MAX 100000
#define BYTES          "chromux.pg.bytes"

struct number {
    char text[NUMBER_SIZE];
};

static bool exact(double x)
{
    return fabs(x) < EXACT_MOST && x == floor(x);
}

int pg_lua_bytes(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TSTRING);
    lua_settop(L, 1);
    lua_createtable(L, 1, 0);
    lua_insert(L, 1);
    lua_rawseti(L, 1, 1);
    luaL_newmetatable(L, BYTES);
    lua_setmetatable(L, 1);
    return 1;
}

/* The string in the table at the top when that is a bytea. */
static bool bytes(lua_State *L, struct pg_value *v)
{
    if (!lua_getmetatable(L, -1))
        return false;
    luaL_getmetatable(L, BYTES);
    bool is = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
    if (!is)
        return false;
    lua_rawgeti(L, -1, 1);
    v->binary = true;
    v->text = lua_type(L, -1) == LUA_TSTRING ? lua_tolstring(L, -1, &v->n) : NULL;
    lua_pop(L, 1);
    return v->text != NULL;
}

/* Bytes of the character at p that PostgreSQL takes; 0: it takes none there. */
static size_t character(const char *p, size_t n)
{
    unsigned char c = (unsigned char)p[0];
    return c < 0x80 ? c != 0 : buf_utf8_len(p, n);
}

/* Replaces the string at the top when it is no text for PostgreSQL: what is no UTF-8, and NUL,
 * become U+FFFD. */
static void make_text(lua_State *L)
{
    static const char wrong[] = {'\xef', '\xbf', '\xbd'};
    size_t n, i = 0, some;
    const char *p = lua_tolstring(L, -1, &n);
    while (i < n && (some = character(p + i, n - i)) > 0)
        i += some;
    if (i == n)
        return;
    char *text = lua_newuserdata(L, n * sizeof wrong), *end = text;
    for (i = 0; i < n; i += some ? some : 1) {
        some = character(p + i, n - i);
        memcpy(end, some ? p + i : wrong, some ? some : sizeof wrong);
        end += some ? some : sizeof wrong;
    }
    lua_pushlstring(L, text, (size_t)(end - text));
    lua_replace(L, -3);
    lua_pop(L, 1);
}

/* The value at the top as the nth parameter; it may be replaced, and is to be kept alive. */
static void param(lua_State *L, unsigned nth, struct pg_value *v, struct number *number)
{
    *v = (struct pg_value){NULL, 0, false};
    switch (lua_type(L, -1)) {
    case LUA_TNIL:
        return;
    case LUA_TBOOLEAN:
        v->text = lua_toboolean(L, -1) ? "true" : "false";
        v->n = strlen(v->text);
        return;
    case LUA_TNUMBER: {
        double x = lua_tonumber(L, -1);
        v->n = (size_t)snprintf(number->text, NUMBER_SIZE, exact(x) ? "%.0f" : "%.17g", x);
        v->text = number->text;
        return;
    }
    case LUA_TSTRING:
        make_text(L);
        v->text = lua_tolstring(L, -1, &v->n);
        return;
    case LUA_TLIGHTUSERDATA:
        if (!lua_touserdata(L, -1))
            return;
        break;
    case LUA_TTABLE:
        if (bytes(L, v))
            return;
        break;
    }
    luaL_error(L, "parameter %d is a %s", (int)nth, luaL_typename(L, -1));
}

const struct pg_value *pg_lua_params(lua_State *L, int first, unsigned n)
{
    luaL_checkstack(L, 6, "parameters");
    struct pg_value *v = lua_newuserdata(L, n * (sizeof *v + sizeof(struct number)));
    struct number *number = (struct number *)(v + n);
    for (unsigned i = 0; i < n; i++) {
        lua_pushvalue(L, first + (int)i);
        param(L, i + 1, &v[i], &number[i]);
        lua_replace(L, first + (int)i);
    }
    return v;
}

/* Pushes the ith statement's table; how many parameters it has. */
static unsigned open_statement(lua_State *L, int list, unsigned i)
{
    lua_rawgeti(L, list, (int)i);
    if (!lua_istable(L, -1))
        luaL_error(L, "statement %d is a %s", (int)i, luaL_typename(L, -1));
    size_t length = lua_objlen(L, -1);
    lua_getfield(L, -1, "n");
    double n = lua_isnil(L, -1) ? (length ? (double)length - 1 : 0) : lua_tonumber(L, -1);
    lua_pop(L, 1);
    if (!(n >= 0 && n <= PARAMS_MAX))
        luaL_error(L, "statement %d has more than %d parameters", (int)i, PARAMS_MAX);
    return (unsigned)n;
}

const struct pg_statement *pg_lua_statements(lua_State *L, int list, unsigned *n)
{
    size_t count = lua_objlen(L, list), params = 0;
    luaL_checkstack(L, 8, "statements");
    if (count > STATEMENTS_MAX)
        luaL_error(L, "more than %d statements", STATEMENTS_MAX);
    *n = (unsigned)count;
    for (unsigned i = 1; i <= *n; i++) {
        params += open_statement(L, list, i);
        lua_pop(L, 1);
    }
    struct pg_statement *s = lua_newuserdata(
        L, count * sizeof *s + params * (sizeof(struct pg_value) + sizeof(struct number)));
    struct pg_value *v = (struct pg_value *)(s + count);
    struct number *number = (struct number *)(v + params);
    for (unsigned i = 0; i < *n; i++) {
        s[i].n = open_statement(L, list, i + 1);
        s[i].params = v;
        lua_rawgeti(L, -1, 1);
        if (lua_type(L, -1) != LUA_TSTRING)
            luaL_error(L, "statement %d has no text", (int)i + 1);
        s[i].sql = lua_tostring(L, -1);
        lua_pop(L, 1);
        for (unsigned k = 1; k <= s[i].n; k++, v++, number++) {
            lua_rawgeti(L, -1, (int)k + 1);
            param(L, k, v, number);
            lua_rawseti(L, -2, (int)k + 1);
        }
        lua_pop(L, 1);
    }
    return s;
}

/* A column's text as a Lua value by its type (oids from PostgreSQL's pg_type.dat). */
static void push_value(lua_State *L, unsigned type, struct str v)
{
    switch (type) {
    case 16: /* bool */
        lua_pushboolean(L, v.n > 0 && v.p[0] == 't');
        return;
    case PG_BYTEA: {
        char *out = lua_newuserdata(L, v.n / 2 + 1);
        lua_pushlstring(L, out, pg_bytea(v, out));
        lua_remove(L, -2);
        return;
    }
    case 21:  /* int2 */
    case 23:  /* int4 */
    case 26:  /* oid */
    case 700: /* float4 */
    case 701: /* float8 */
        lua_pushnumber(L, strtod(v.p, NULL));
        return;
    case 20:   /* int8 */
    case 1700: /* numeric: decimals stay text, as a double would change them */
        if (!memchr(v.p, '.', v.n) && exact(strtod(v.p, NULL))) {
            lua_pushnumber(L, strtod(v.p, NULL));
            return;
        }
        /* fall through */
    default:
        lua_pushlstring(L, v.p, v.n);
    }
}

static void push_list(lua_State *L, const struct pg_rows *r)
{
    lua_createtable(L, r->rows, 1);
    lua_pushnumber(L, (double)r->affected);
    lua_setfield(L, -2, "affected");
    for (int i = 0; i < r->rows; i++) {
        lua_createtable(L, 0, r->cols);
        for (int c = 0; c < r->cols; c++) {
            struct str v;
            if (!r->value(r, i, c, &v))
                continue;
            push_value(L, r->type(r, c), v);
            lua_setfield(L, -2, r->name(r, c));
        }
        lua_rawseti(L, -2, i + 1);
    }
}

static int push_error(lua_State *L, const char *error, const char *sqlstate)
{
    lua_pushnil(L);
    lua_pushstring(L, error);
    lua_pushstring(L, sqlstate);
    return 3;
}

int pg_lua_push_rows(lua_State *L)
{
    const struct pg_rows *r = lua_touserdata(L, 1);
    if (!r->ok)
        return push_error(L, r->error, r->sqlstate);
    push_list(L, r);
    return 1;
}

int pg_lua_push_outcome(lua_State *L)
{
    const struct pg_outcome *o = lua_touserdata(L, 1);
    if (!o->ok) {
        int n = push_error(L, o->error, o->sqlstate);
        lua_createtable(L, 0, 2);
        lua_pushboolean(L, o->unknown);
        lua_setfield(L, -2, "unknown");
        if (o->index < o->n) {
            lua_pushinteger(L, (lua_Integer)o->index + 1);
            lua_setfield(L, -2, "index");
        }
        return n + 1;
    }
    lua_createtable(L, (int)o->n, 0);
    for (unsigned i = 0; i < o->n; i++) {
        push_list(L, &o->rows[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}
