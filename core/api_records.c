/* api_records.c: what records.c finds, as Lua values. Ids become Lua strings, and Lua tables tell
 * which ones there were.
 *
 * A Lua error unwinds past us, so what is being written lies in static bufs and is never lost: each
 * function empties those it uses when it starts, and gives large memory back when it is done. */
#include "api_records.h"

#include "records.h"
#include "script.h"

#include <stdio.h>

#define BYTES_MOST   (1u << 30)
#define KEPT_MOST    (1u << 20) /* what a scratch buf holds on to between calls */
#define RECORDS_MOST (1u << 20)

static struct buf mem = {.cap = BYTES_MOST};    /* what slice_string() decodes */
static struct buf floats = {.cap = BYTES_MOST}; /* a vector */
static struct buf out = {.cap = BYTES_MOST};    /* a body */
static struct buf parts[RECORDS_COLUMNS] = {    /* the columns of a body */
                                            {.cap = BYTES_MOST},
                                            {.cap = BYTES_MOST},
                                            {.cap = BYTES_MOST},
                                            {.cap = BYTES_MOST},
                                            {.cap = BYTES_MOST}};
static struct buf others = {.cap = RECORDS_MOST * sizeof(struct record)};

static void rest(struct buf *b)
{
    buf_clear(b);
    if (b->size > KEPT_MOST)
        buf_fini(b);
}

static void rest_all(void)
{
    rest(&mem);
    rest(&floats);
    rest(&out);
    rest(&others);
    for (unsigned i = 0; i < RECORDS_COLUMNS; i++)
        rest(&parts[i]);
}

/* prefix: says which of two answers is meant. */
static int refuse(lua_State *L, const char *prefix, const char *why)
{
    rest_all();
    lua_pushnil(L);
    lua_pushfstring(L, "%s%s", prefix, why);
    return 2;
}

/* Opens the answer that is the argument arg. 0, or what refuse() pushed. */
static int open_answer(lua_State *L, int arg, bool whole, const char *prefix, struct records *r)
{
    struct str text;
    const char *why;
    size_t at;
    text.p = luaL_checklstring(L, arg, &text.n);
    if (records_open(r, text, whole, &at, &why))
        return 0;
    if (at == SIZE_MAX)
        return refuse(L, prefix, why);
    rest_all();
    lua_pushnil(L);
    lua_pushfstring(L, "%snot JSON: %s, at byte %d", prefix, why, (int)at + 1);
    return 2;
}

/* The last argument is a table; there may be none. */
static void need_options(lua_State *L, int arg)
{
    if (lua_isnoneornil(L, arg)) {
        lua_settop(L, arg - 1);
        lua_newtable(L);
    }
    luaL_checktype(L, arg, LUA_TTABLE);
    lua_settop(L, arg);
}

static void push_id(lua_State *L, const struct record *record)
{
    struct str id;
    bool ok = slice_string(record->value[RECORDS_IDS], &mem, &id);
    must(ok); /* it was validated */
    lua_pushlstring(L, id.p, id.n);
}

/* Has the table at index `table` something for the id on top of the stack? */
static bool has(lua_State *L, int table)
{
    lua_pushvalue(L, -1);
    lua_rawget(L, table);
    bool there = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return there;
}

/* Sets the value of the id on top of the stack, which stays there, in the table at this index. */
static void note(lua_State *L, int table, lua_Number value)
{
    lua_pushvalue(L, -1);
    lua_pushnumber(L, value);
    lua_rawset(L, table);
}

/* Takes the id from the top of the stack to the end of the list at this index. */
static void append(lua_State *L, int list)
{
    lua_rawseti(L, list, (int)lua_objlen(L, list) + 1);
}

static const char twice[] = "an id is there twice";

static int records_ids(lua_State *L)
{
    enum { ANSWER = 1, LIST, SEEN };
    struct records r;
    struct record record;
    const char *why;
    int n = 0, refused = open_answer(L, ANSWER, false, "", &r);
    if (refused)
        return refused;
    lua_settop(L, ANSWER);
    lua_newtable(L);
    lua_newtable(L);
    while (records_next(&r, &record, &why)) {
        push_id(L, &record);
        if (has(L, SEEN))
            return refuse(L, "", twice);
        note(L, SEEN, 1);
        lua_rawseti(L, LIST, ++n);
    }
    if (why)
        return refuse(L, "", why);
    rest_all();
    lua_settop(L, LIST);
    return 1;
}

/* ---- the body of an add --------------------------------------------------------------------- */

struct adding {
    bool base64, only, skip;
    size_t bytes; /* of a vector; 0: none was seen */
    lua_Number count;
};

static void read_option_table(lua_State *L, const char *name, bool *there)
{
    lua_getfield(L, 2, name);
    *there = !lua_isnil(L, -1);
    luaL_argcheck(L, !*there || lua_istable(L, -1), 2, "only and skip are tables");
}

static void put_value(enum records_column column, struct str value)
{
    if (buf_len(&parts[column]))
        buf_put(&parts[column], ",", 1);
    buf_put_str(&parts[column], value);
}

static void put_record(const struct adding *adding, const struct record *record)
{
    for (unsigned i = 0; i < RECORDS_COLUMNS; i++)
        if (i != RECORDS_EMBEDDINGS || !adding->base64)
            put_value(i, record->value[i]);
    if (!adding->base64)
        return;
    if (buf_len(&parts[RECORDS_EMBEDDINGS]))
        buf_put(&parts[RECORDS_EMBEDDINGS], ",", 1);
    records_put_base64(&parts[RECORDS_EMBEDDINGS],
                       (struct str){buf_data(&floats), buf_len(&floats)});
}

/* The columns in `parts` as one body in `out`. */
static void put_body(void)
{
    static const char *const names[RECORDS_COLUMNS] = {
        [RECORDS_IDS] = "{\"ids\":[",
        [RECORDS_EMBEDDINGS] = "],\"embeddings\":[",
        [RECORDS_DOCUMENTS] = "],\"documents\":[",
        [RECORDS_METADATAS] = "],\"metadatas\":[",
        [RECORDS_URIS] = "],\"uris\":[",
    };
    for (unsigned i = 0; i < RECORDS_COLUMNS; i++) {
        buf_puts(&out, names[i]);
        buf_put(&out, buf_data(&parts[i]), buf_len(&parts[i]));
        rest(&parts[i]);
    }
    buf_puts(&out, "]}");
}

enum { ADD_ANSWER = 1, ADD_OPTIONS, ADD_ONLY, ADD_SKIP, ADD_SEEN, ADD_NULLS };

/* Takes one record, whose id is on top of the stack. NULL or why not. */
static const char *add_record(lua_State *L, struct adding *adding, const struct record *record)
{
    if (has(L, ADD_SEEN))
        return twice;
    note(L, ADD_SEEN, 1);
    if ((adding->only && !has(L, ADD_ONLY)) || (adding->skip && has(L, ADD_SKIP)))
        return NULL;
    buf_clear(&floats);
    enum records_vector kind = records_put_floats(&floats, record->value[RECORDS_EMBEDDINGS]);
    if (kind == RECORDS_NO_VECTOR)
        return "an embedding that is no list of numbers";
    if (adding->bytes && adding->bytes != buf_len(&floats))
        return "dimensions differ";
    adding->bytes = buf_len(&floats);
    if (kind == RECORDS_HOLES) {
        lua_pushvalue(L, -1);
        append(L, ADD_NULLS);
        return NULL;
    }
    put_record(adding, record);
    adding->count++;
    return NULL;
}

static int records_add_body(lua_State *L)
{
    struct adding adding = {0};
    struct records r;
    struct record record;
    const char *why, *wrong = NULL;
    need_options(L, ADD_OPTIONS);
    read_option_table(L, "only", &adding.only);
    read_option_table(L, "skip", &adding.skip);
    lua_getfield(L, ADD_OPTIONS, "base64");
    adding.base64 = lua_toboolean(L, -1);
    lua_pop(L, 1);
    rest_all();
    int refused = open_answer(L, ADD_ANSWER, true, "", &r);
    if (refused)
        return refused;
    lua_newtable(L);
    lua_newtable(L);
    while (!wrong && records_next(&r, &record, &why)) {
        push_id(L, &record);
        wrong = add_record(L, &adding, &record);
        lua_pop(L, 1);
    }
    if (wrong || why)
        return refuse(L, "", wrong ? wrong : why);
    if (adding.count > 0)
        put_body();
    lua_pushlstring(L, buf_data(&out), buf_len(&out));
    rest_all();
    lua_pushnumber(L, adding.count);
    lua_pushvalue(L, ADD_NULLS);
    return 3;
}

/* ---- comparing ------------------------------------------------------------------------------ */

enum { A = 1, B, OPTIONS, RESULT, CHANGED, ONLY_A, ONLY_B, NANS, INDEX };

static const char first[] = "the first: ", second[] = "the second: ";

/* Takes the records of B to `others`, and what number each id has to INDEX. 0, or what refuse()
 * pushed. */
static int take_others(lua_State *L)
{
    struct records r;
    struct record record;
    const char *why;
    lua_Number n = 0;
    int refused = open_answer(L, B, true, second, &r);
    if (refused)
        return refused;
    while (records_next(&r, &record, &why)) {
        push_id(L, &record);
        if (has(L, INDEX))
            return refuse(L, second, twice);
        note(L, INDEX, ++n);
        lua_pop(L, 1);
        if (!buf_add(&others, &record, sizeof record))
            return refuse(L, second, "too many records");
    }
    return why ? refuse(L, second, why) : 0;
}

/* Compares a record of A, whose id is on top of the stack. NULL or why not. *equal: they are. */
static const char *compare_one(lua_State *L, const struct record *a, unsigned ulps, bool *equal)
{
    struct records_verdict verdict;
    *equal = false;
    lua_pushvalue(L, -1);
    lua_rawget(L, INDEX);
    int n = lua_isnil(L, -1) ? -1 : (int)lua_tonumber(L, -1);
    lua_pop(L, 1);
    if (n == 0)
        return twice;
    note(L, INDEX, 0);
    if (n < 0) {
        lua_pushvalue(L, -1);
        append(L, ONLY_A);
        return NULL;
    }
    const struct record *b = (const struct record *)(const void *)buf_data(&others) + (n - 1);
    if (!records_compare(a, b, ulps, &verdict))
        return "an embedding that is no list of numbers";
    *equal = verdict.same;
    if (!verdict.same) {
        lua_pushvalue(L, -1);
        append(L, CHANGED);
    }
    if (verdict.holes) {
        lua_pushvalue(L, -1);
        append(L, NANS);
    }
    return NULL;
}

/* Those of `others` that no record of A has met. */
static void list_others(lua_State *L)
{
    const struct record *b = (const struct record *)(const void *)buf_data(&others);
    size_t count = buf_len(&others) / sizeof *b;
    for (size_t i = 0; i < count; i++) {
        push_id(L, &b[i]);
        lua_pushvalue(L, -1);
        lua_rawget(L, INDEX);
        bool met = lua_tonumber(L, -1) == 0;
        lua_pop(L, 1);
        if (met)
            lua_pop(L, 1);
        else
            append(L, ONLY_B);
    }
}

static unsigned read_ulps(lua_State *L)
{
    lua_getfield(L, OPTIONS, "cosine");
    bool cosine = lua_toboolean(L, -1);
    lua_getfield(L, OPTIONS, "ulps");
    lua_Number ulps = lua_isnil(L, -1) ? 8 : lua_tonumber(L, -1);
    luaL_argcheck(L, ulps >= 1 && ulps <= 1 << 20, OPTIONS, "ulps is a number from 1 to 1048576");
    lua_pop(L, 2);
    return cosine ? (unsigned)ulps : 0;
}

static int push_result(lua_State *L, lua_Number equal)
{
    static const char *const names[] = {"changed", "only_a", "only_b", "nan"};
    lua_pushnumber(L, equal);
    lua_setfield(L, RESULT, "equal");
    for (int i = 0; i < (int)COUNT_OF(names); i++) {
        lua_pushvalue(L, CHANGED + i);
        lua_setfield(L, RESULT, names[i]);
    }
    lua_settop(L, RESULT);
    return 1;
}

static int records_compare_answers(lua_State *L)
{
    struct records r;
    struct record record;
    const char *why, *wrong = NULL;
    lua_Number equal = 0;
    bool same;
    need_options(L, OPTIONS);
    unsigned ulps = read_ulps(L);
    for (int i = RESULT; i <= INDEX; i++)
        lua_newtable(L);
    rest_all();
    int refused = open_answer(L, A, true, first, &r);
    if (!refused)
        refused = take_others(L);
    if (refused)
        return refused;
    while (!wrong && records_next(&r, &record, &why)) {
        push_id(L, &record);
        wrong = compare_one(L, &record, ulps, &same);
        lua_pop(L, 1);
        equal += same;
    }
    if (wrong)
        return refuse(L, wrong == twice ? first : "", wrong);
    if (why)
        return refuse(L, first, why);
    list_others(L);
    rest_all();
    return push_result(L, equal);
}

static int records_hashes(lua_State *L)
{
    struct records r;
    struct record record;
    const char *why;
    uint64_t hash;
    int refused = open_answer(L, 1, true, "", &r);
    if (refused)
        return refused;
    lua_settop(L, 1);
    lua_newtable(L);
    while (records_next(&r, &record, &why)) {
        char digits[17];
        push_id(L, &record);
        if (has(L, 2))
            return refuse(L, "", twice);
        if (!records_hash(&record, &hash))
            return refuse(L, "", "an embedding that is no list of numbers");
        snprintf(digits, sizeof digits, "%016llx", (unsigned long long)hash);
        lua_pushlstring(L, digits, 16);
        lua_rawset(L, 2);
    }
    if (why)
        return refuse(L, "", why);
    rest_all();
    return 1;
}

static int open_module(lua_State *L)
{
    static const struct luaL_Reg functions[] = {{"ids", records_ids},
                                                {"add_body", records_add_body},
                                                {"compare", records_compare_answers},
                                                {"hash", records_hashes},
                                                {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}

void api_records_open(lua_State *L)
{
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "preload");
    lua_pushcfunction(L, open_module);
    lua_setfield(L, -2, "chromux.records");
    lua_pop(L, 2);
}
