/* api_slice.c: what slice.c finds, as Lua values; and what bodies of Chroma's record requests must
 * be so that several may go as one.
 *
 * A Lua error unwinds past us, so text that is being written lies in two static bufs and is never
 * lost: each function empties them when it starts, and gives large memory back when it is done. */
#include "api_slice.h"

#include "script.h"
#include "slice.h"
#include <stdio.h>
#include <stdlib.h>

#define BYTES_MOST (1u << 30)
#define KEPT_MOST  (1u << 20) /* what a scratch buf holds on to between calls */

static struct buf mem = {.cap = BYTES_MOST}; /* what slice_string() decodes */
static struct buf out = {.cap = BYTES_MOST}; /* the answer */

static struct str check_text(lua_State *L, int arg)
{
    struct str s;
    s.p = luaL_checklstring(L, arg, &s.n);
    return s;
}

static void push_str(lua_State *L, struct str s)
{
    lua_pushlstring(L, s.p, s.n);
}

static void scratch_rest(struct buf *b)
{
    buf_clear(b);
    if (b->size > KEPT_MOST)
        buf_fini(b);
}

static int answer_out(lua_State *L)
{
    push_str(L, (struct str){buf_data(&out), buf_len(&out)});
    scratch_rest(&out);
    scratch_rest(&mem);
    return 1;
}

static int refuse(lua_State *L, const char *why)
{
    lua_pushnil(L);
    lua_pushstring(L, why);
    return 2;
}

static int refuse_json(lua_State *L, const char *why, size_t at)
{
    lua_pushnil(L);
    lua_pushfstring(L, "not JSON: %s, at byte %d", why, (int)at + 1);
    return 2;
}

/* Is it JSON whose value starts with this byte? 0, or what refuse() pushed. *value: without the
 * space around. */
static int take_value(lua_State *L, struct str text, char first, const char *otherwise,
                      struct str *value)
{
    size_t at;
    const char *why;
    if (!slice_validate(text, &at, &why))
        return refuse_json(L, why, at);
    *value = slice_trim(text);
    return value->p[0] == first ? 0 : refuse(L, otherwise);
}

/* ---- values -------------------------------------------------------------------------------- */

static const char no_object[] = "not an object", no_array[] = "not an array",
                  duplicate[] = "a member is there twice";

static struct str decoded(struct str raw)
{
    struct str text;
    bool ok = slice_string(raw, &mem, &text);
    must(ok); /* it was validated */
    return text;
}

static int slice_members(lua_State *L)
{
    struct str key, value, object;
    int refused = take_value(L, check_text(L, 1), '{', no_object, &object);
    if (refused)
        return refused;
    lua_newtable(L);
    struct slice s = slice_start(object);
    while (slice_object_next(&s, &key, &value)) {
        push_str(L, decoded(key));
        lua_pushvalue(L, -1);
        lua_rawget(L, -3);
        if (!lua_isnil(L, -1))
            return refuse(L, duplicate);
        lua_pop(L, 1);
        push_str(L, value);
        lua_rawset(L, -3);
    }
    scratch_rest(&mem);
    return 1;
}

static int slice_elements(lua_State *L)
{
    struct str element, array;
    int n = 0, refused = take_value(L, check_text(L, 1), '[', no_array, &array);
    if (refused)
        return refused;
    lua_newtable(L);
    struct slice s = slice_start(array);
    while (slice_array_next(&s, &element)) {
        push_str(L, element);
        lua_rawseti(L, -2, ++n);
    }
    return 1;
}

static int slice_text(lua_State *L)
{
    struct str text;
    if (!slice_string(check_text(L, 1), &mem, &text))
        return refuse(L, "not a JSON string");
    push_str(L, text);
    scratch_rest(&mem);
    return 1;
}

static int slice_quote(lua_State *L)
{
    struct str s = check_text(L, 1);
    luaL_argcheck(L, s.n < BYTES_MOST / 6, 1, "too long");
    buf_clear(&out);
    buf_put_json(&out, s);
    return answer_out(L);
}

static int slice_canon(lua_State *L)
{
    struct str text = check_text(L, 1);
    size_t at;
    const char *why;
    buf_clear(&out);
    if (slice_canonical(text, &out))
        return answer_out(L);
    return slice_validate(text, &at, &why) ? refuse(L, "too big") : refuse_json(L, why, at);
}

static int slice_hash_hex(lua_State *L)
{
    char digits[17];
    snprintf(digits, sizeof digits, "%016llx", (unsigned long long)slice_hash(check_text(L, 1)));
    lua_pushlstring(L, digits, 16);
    return 1;
}

/* ---- records ------------------------------------------------------------------------------- */

enum part { DOCUMENTS, EMBEDDINGS, IDS, METADATAS, URIS, PART_COUNT };

static const struct {
    struct str name;
    const char *kinds; /* how an element may start */
    const char *rule;  /* what one that starts otherwise breaks */
} parts[PART_COUNT] = {
    [DOCUMENTS] = {{"documents", 9}, "\"n", "a document that is neither text nor null"},
    [EMBEDDINGS] = {{"embeddings", 10}, "[\"n", "an embedding that is no list"},
    [IDS] = {{"ids", 3}, "\"", "an id that is not text"},
    [METADATAS] = {{"metadatas", 9}, "{n", "a metadata that is neither an object nor null"},
    [URIS] = {{"uris", 4}, "\"n", "a uri that is neither text nor null"},
};

struct records {
    struct str part[PART_COUNT]; /* no bytes: absent; else an array or null */
    long count, dimension;       /* dimension 0: not known */
    char encoding;               /* how embeddings start: [ or ", 0 when there are none */
    bool holes;                  /* an embedding is null */
};

/* How many 32-bit floats; -1: not the base64 of any. */
static long base64_dimension(struct str raw)
{
    struct str s = {raw.p + 1, raw.n - 2};
    size_t pads = 0;
    while (pads < 2 && pads < s.n && s.p[s.n - 1 - pads] == '=')
        pads++;
    size_t bytes = s.n / 4 * 3 - pads;
    if (s.n == 0 || s.n % 4 || bytes % 4 || memchr(s.p, '\\', s.n))
        return -1;
    return (long)(bytes / 4);
}

static const char *take_embedding(struct records *r, struct str raw)
{
    if (raw.p[0] == 'n') {
        r->holes = true;
        return NULL;
    }
    long n = raw.p[0] == '[' ? slice_count_numbers(raw) : base64_dimension(raw);
    if (n <= 0)
        return "an embedding that is no list of numbers";
    if (r->encoding && r->encoding != raw.p[0])
        return "encodings differ";
    if (r->dimension && r->dimension != n)
        return "dimensions differ";
    r->encoding = raw.p[0];
    r->dimension = n;
    return NULL;
}

static const char *take_part(struct records *r, enum part part)
{
    struct str element;
    struct slice s = slice_start(r->part[part]);
    long n = 0;
    while (slice_array_next(&s, &element)) {
        if (!strchr(parts[part].kinds, element.p[0]))
            return parts[part].rule;
        const char *why = part == EMBEDDINGS ? take_embedding(r, element) : NULL;
        if (why)
            return why;
        n++;
    }
    if (part == IDS)
        r->count = n;
    if (n == 0)
        return "a list without elements";
    return n == r->count ? NULL : "lists of different length";
}

static const char *find_parts(struct records *r, struct str object)
{
    struct str key, value;
    struct slice s = slice_start(object);
    while (slice_object_next(&s, &key, &value)) {
        struct str name = decoded(key);
        int i = 0;
        while (i < PART_COUNT && !str_eq(name, parts[i].name))
            i++;
        if (i == PART_COUNT)
            return "a member that is not known";
        if (r->part[i].n)
            return duplicate;
        if (value.p[0] != '[' && (value.p[0] != 'n' || i == IDS))
            return "a member that is no list";
        r->part[i] = value;
    }
    return r->part[IDS].n ? NULL : "no ids";
}

/* Takes a body apart; it must be JSON. NULL or why not. */
static const char *take_records(struct records *r, struct str object)
{
    *r = (struct records){.dimension = 0};
    const char *why = find_parts(r, object);
    if (!why)
        why = take_part(r, IDS);
    for (int i = 0; i < PART_COUNT && !why; i++)
        if (i != IDS && r->part[i].n && r->part[i].p[0] == '[')
            why = take_part(r, (enum part)i);
    return why;
}

static void push_shape(lua_State *L, const struct records *r)
{
    char text[160];
    size_t n = 0;
    for (int i = 0; i < PART_COUNT; i++) {
        bool null = r->part[i].n && r->part[i].p[0] == 'n';
        if (!r->part[i].n)
            continue;
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%s%s", n ? "," : "", parts[i].name.p,
                              null ? ":null" : "");
        if (i == EMBEDDINGS && !null)
            n += (size_t)snprintf(text + n, sizeof text - n, ":%s:%ld%s",
                                  r->encoding == '"' ? "b64" : "list", r->dimension,
                                  r->holes ? ":holes" : "");
    }
    must(n < sizeof text);
    lua_pushlstring(L, text, n);
}

/* Pushes the table of the decoded strings of an array; 0, or refuse() when one is no string or, if
 * asked, there twice. */
static int push_ids(lua_State *L, struct str array, long count, bool distinct)
{
    struct str element;
    struct slice s = slice_start(array);
    int n = 0, narr = count > INT32_MAX / 2 ? 0 : (int)count;
    lua_createtable(L, narr, 0);
    lua_createtable(L, 0, distinct && count > 1 ? narr : 0);
    while (slice_array_next(&s, &element)) {
        if (element.p[0] != '"')
            return refuse(L, parts[IDS].rule);
        push_str(L, decoded(element));
        if (distinct && count > 1) {
            lua_pushvalue(L, -1);
            lua_rawget(L, -3);
            if (!lua_isnil(L, -1))
                return refuse(L, "an id is there twice");
            lua_pop(L, 1);
            lua_pushvalue(L, -1);
            lua_pushboolean(L, true);
            lua_rawset(L, -4);
        }
        lua_rawseti(L, -3, ++n);
    }
    lua_pop(L, 1);
    scratch_rest(&mem);
    return 0;
}

static int slice_records(lua_State *L)
{
    struct str text = check_text(L, 1), object;
    struct records r;
    if ((double)text.n > luaL_checknumber(L, 2))
        return refuse(L, "too big");
    int refused = take_value(L, text, '{', no_object, &object);
    if (refused)
        return refused;
    const char *why = take_records(&r, object);
    if (why)
        return refuse(L, why);
    lua_createtable(L, 0, 4);
    refused = push_ids(L, r.part[IDS], r.count, true);
    if (refused)
        return refused;
    lua_setfield(L, -2, "ids");
    lua_pushnumber(L, (lua_Number)r.count);
    lua_setfield(L, -2, "count");
    if (r.dimension) {
        lua_pushnumber(L, (lua_Number)r.dimension);
        lua_setfield(L, -2, "dimension");
    }
    push_shape(L, &r);
    lua_setfield(L, -2, "shape");
    return 1;
}

static void put_joined(const struct records *all, int n)
{
    for (int part = 0, written = 0; part < PART_COUNT; part++) {
        if (!all[0].part[part].n)
            continue;
        buf_puts(&out, written++ ? ",\"" : "{\"");
        buf_put_str(&out, parts[part].name);
        buf_puts(&out, "\":");
        if (all[0].part[part].p[0] == 'n') {
            buf_puts(&out, "null");
            continue;
        }
        for (int i = 0; i < n; i++) {
            struct str array = all[i].part[part];
            buf_put(&out, i ? "," : "[", 1);
            buf_put(&out, array.p + 1, array.n - 2);
        }
        buf_put(&out, "]", 1);
    }
    buf_put(&out, "}", 1);
}

static int slice_join(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    int n = (int)lua_objlen(L, 1);
    double total = 0;
    luaL_argcheck(L, n > 0, 1, "nothing to join");
    struct records *all = lua_newuserdata(L, (size_t)n * sizeof *all);
    lua_pushnil(L); /* the shape of the first */
    for (int i = 0; i < n; i++) {
        struct str object, text;
        lua_rawgeti(L, 1, i + 1); /* the table keeps it while we use its bytes */
        luaL_argcheck(L, lua_type(L, -1) == LUA_TSTRING, 1, "texts are needed");
        text.p = lua_tolstring(L, -1, &text.n);
        total += (double)text.n + 64;
        if (take_value(L, text, '{', no_object, &object))
            return luaL_error(L, "text %d: %s", i + 1, lua_tostring(L, -1));
        const char *why = take_records(&all[i], object);
        if (why)
            return luaL_error(L, "text %d: %s", i + 1, why);
        push_shape(L, &all[i]);
        if (i == 0)
            lua_replace(L, 3);
        else if (!lua_rawequal(L, -1, 3))
            return luaL_error(L, "text %d has the shape %s, the first %s", i + 1,
                              lua_tostring(L, -1), lua_tostring(L, 3));
        lua_settop(L, 3);
    }
    luaL_argcheck(L, total < BYTES_MOST, 1, "too big");
    buf_clear(&out);
    put_joined(all, n);
    return answer_out(L);
}

static int slice_delete(lua_State *L)
{
    static const char *const names[] = {"ids", "where", "where_document", "limit"};
    struct str key, value, object;
    unsigned seen = 0;
    int refused = take_value(L, check_text(L, 1), '{', no_object, &object);
    if (refused)
        return refused;
    lua_newtable(L);
    struct slice s = slice_start(object);
    while (slice_object_next(&s, &key, &value)) {
        struct str name = decoded(key);
        unsigned i = 0;
        while (i < COUNT_OF(names) && !str_eq(name, str_from(names[i])))
            i++;
        if (i < COUNT_OF(names) && (seen & 1u << i))
            return refuse(L, duplicate);
        seen |= 1u << i;
        if (i == COUNT_OF(names)) {
            lua_pushboolean(L, true);
            lua_setfield(L, -2, "other");
            continue;
        }
        if (value.p[0] == 'n')
            continue;
        if (i > 0)
            push_str(L, value);
        else if (value.p[0] != '[')
            return refuse(L, "ids that are no list");
        else if ((refused = push_ids(L, value, 0, false)))
            return refused;
        lua_setfield(L, -2, names[i]);
    }
    return 1;
}

static int slice_ids_body(lua_State *L)
{
    size_t total = 0;
    luaL_checktype(L, 1, LUA_TTABLE);
    int n = (int)lua_objlen(L, 1);
    buf_clear(&out);
    buf_puts(&out, "{\"ids\":[");
    for (int i = 1; i <= n; i++) {
        struct str id;
        lua_rawgeti(L, 1, i);
        luaL_argcheck(L, lua_type(L, -1) == LUA_TSTRING, 1, "ids are strings");
        id.p = lua_tolstring(L, -1, &id.n);
        total += id.n * 6 + 3;
        luaL_argcheck(L, id.n < BYTES_MOST / 6 && total < BYTES_MOST - 16, 1, "too big");
        if (i > 1)
            buf_put(&out, ",", 1);
        buf_put_json(&out, id);
        lua_pop(L, 1);
    }
    buf_puts(&out, "]}");
    return answer_out(L);
}

/* ---- collections --------------------------------------------------------------------------- */

static int slice_collection(lua_State *L)
{
    static const char *const names[] = {"id", "name", "tenant", "database", "dimension"};
    enum { ID, DIMENSION = 4 };
    struct str key, value, object, found[COUNT_OF(names)] = {{NULL, 0}}, text = check_text(L, 1);
    int refused = take_value(L, text, '{', no_object, &object);
    if (refused)
        return refused;
    struct slice s = slice_start(object);
    while (slice_object_next(&s, &key, &value)) {
        struct str name = decoded(key);
        for (unsigned i = 0; i < COUNT_OF(names); i++)
            if (str_eq(name, str_from(names[i]))) {
                if (found[i].n)
                    return refuse(L, duplicate);
                found[i] = value;
            }
    }
    lua_createtable(L, 0, 6);
    for (unsigned i = 0; i < DIMENSION; i++) {
        if (found[i].n == 0 || found[i].p[0] != '"')
            return refuse(L, "not a collection");
        push_str(L, decoded(found[i]));
        lua_setfield(L, -2, names[i]);
    }
    if (found[ID].n != 38 || memchr(found[ID].p, '\\', 38))
        return refuse(L, "a collection whose id is not 36 bytes");
    lua_pushnumber(L, (lua_Number)(found[ID].p + 1 - text.p + 1));
    lua_setfield(L, -2, "id_at");
    if (found[DIMENSION].n && (found[DIMENSION].p[0] >= '0' && found[DIMENSION].p[0] <= '9')) {
        push_str(L, found[DIMENSION]);
        lua_pushnumber(L, lua_tonumber(L, -1));
        lua_setfield(L, -3, "dimension");
        lua_pop(L, 1);
    }
    return 1;
}

static int slice_replace_at(lua_State *L)
{
    struct str text = check_text(L, 1), bytes = check_text(L, 3);
    double at = luaL_checknumber(L, 2);
    luaL_argcheck(L, at >= 1 && at + (double)bytes.n - 1 <= (double)text.n, 2,
                  "outside of the text");
    luaL_argcheck(L, text.n < BYTES_MOST, 1, "too big");
    size_t before = (size_t)at - 1;
    buf_clear(&out);
    buf_put(&out, text.p, before);
    buf_put_str(&out, bytes);
    buf_put(&out, text.p + before + bytes.n, text.n - before - bytes.n);
    return answer_out(L);
}

static int open_module(lua_State *L)
{
    static const struct luaL_Reg functions[] = {{"members", slice_members},
                                                {"elements", slice_elements},
                                                {"string", slice_text},
                                                {"quote", slice_quote},
                                                {"canonical", slice_canon},
                                                {"hash", slice_hash_hex},
                                                {"records", slice_records},
                                                {"join", slice_join},
                                                {"delete", slice_delete},
                                                {"ids_body", slice_ids_body},
                                                {"collection", slice_collection},
                                                {"replace_at", slice_replace_at},
                                                {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}

void api_slice_open(lua_State *L)
{
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "preload");
    lua_pushcfunction(L, open_module);
    lua_setfield(L, -2, "chromux.slice");
    lua_pop(L, 2);
}
