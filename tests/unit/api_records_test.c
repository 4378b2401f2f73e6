/* api_records_test.c: require("chromux.records") on a VM of its own. A program checks with
 * assert(). */
#include "api_records.h"
#include "script.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static lua_State *vm;

static int start(void **state)
{
    vm = script_new(0);
    if (!vm)
        return -1;
    api_records_open(vm);
    return 0;
}

static int stop(void **state)
{
    script_free(vm);
    return 0;
}

/* What programs find beside the module: refused(why, results of a call), is(due, list), and
 * answer(ids, embeddings, others): an answer of /get whose columns are texts of arrays without
 * their brackets; those that are not given hold nulls. */
static const char prelude[] =
    "local records = require('chromux.records')\n"
    "local function refused(why, value, got)\n"
    "  if value ~= nil or got ~= why then\n"
    "    error(('%s, %s is not: %s'):format(tostring(value), tostring(got), why), 2) end\n"
    "end\n"
    "local function is(due, list)\n"
    "  local got = table.concat(list, ' ')\n"
    "  if got ~= due then error(got .. ' is not ' .. due, 2) end\n"
    "end\n"
    "local function answer(ids, embeddings, others)\n"
    "  local _, commas = ids:gsub(',', '')\n"
    "  local nulls = ids == '' and '' or 'null' .. (',null'):rep(commas)\n"
    "  local o = others or {}\n"
    "  return ('{`ids`:[%s],`embeddings`:[%s],`documents`:[%s],`metadatas`:[%s],`uris`:[%s],'\n"
    "    .. '`include`:[]}'):format(ids, embeddings, o.documents or nulls, o.metadatas or nulls,\n"
    "    o.uris or nulls)\n"
    "end\n";

/* ` in the program stands for a double quote, which JSON has so many of. */
static void run(const char *program)
{
    struct buf error;
    buf_init(&error, 1 << 16);
    char *text = base_printf("%s%s", prelude, program);
    for (char *p = text; *p; p++)
        *p = *p == '`' ? '"' : *p;
    if (luaL_loadbuffer(vm, text, strlen(text), "=program") != 0)
        fail_msg("%s", lua_tostring(vm, -1));
    bool ok = script_call(vm, 0, 0, true, &error);
    if (!ok)
        print_error("%.*s\n", (int)buf_len(&error), buf_data(&error));
    free(text);
    buf_fini(&error);
    assert_true(ok);
}

static void ids(void **state)
{
    run("is('', records.ids('{`ids`:[]}'))\n"
        "is('b a \\n', records.ids('{`ids`:[`b`,`\\\\u0061`,`\\\\n`],`embeddings`:null}'))\n"
        "refused('an id is there twice', records.ids('{`ids`:[`a`,`b`,`\\\\u0061`]}'))\n"
        "refused('an id that is no text', records.ids('{`ids`:[`a`,null]}'))\n"
        "refused('no ids', records.ids('{`error`:`x`}'))\n"
        "refused('not JSON: the text ends before the value does, at byte 9',\n"
        "  records.ids('{`ids`:['))\n"
        "refused('not an object', records.ids('[]'))\n"
        "assert(not pcall(records.ids))\n");
}

static void a_body_holds_the_bytes_of_the_answer(void **state)
{
    run("local a = answer('`a`,`\\\\u0062`', '[1.50, 2],[-0,1e-7]', {documents = "
        "'null,`\\\\u00e9`',\n"
        "  metadatas = '{`n`:9223372036854775807,`f`:1.0 },null', uris = '`u`,null'})\n"
        "local body, count, nulls = records.add_body(a, {})\n"
        "assert(body == '{`ids`:[`a`,`\\\\u0062`],`embeddings`:[[1.50, 2],[-0,1e-7]],'\n"
        "  .. '`documents`:[null,`\\\\u00e9`],`metadatas`:[{`n`:9223372036854775807,`f`:1.0 "
        "},null],'\n"
        "  .. '`uris`:[`u`,null]}', body)\n"
        "assert(count == 2 and #nulls == 0)\n"
        "body = records.add_body(a, {base64 = true})\n"
        /* 0x3fc00000 0x40000000, 0x80000000 0x33d6bf95 */
        "assert(body:find('`embeddings`:[`AADAPwAAAEA=`,`AAAAgJW/1jM=`],', 1, true), body)\n");
}

static void a_body_of_some(void **state)
{
    run("local a = answer('`a`,`b`,`c`', '[1],[2],[3]')\n"
        "local function ids(options)\n"
        "  local body, count, nulls = records.add_body(a, options)\n"
        "  local list = count > 0 and records.ids(body) or {}\n"
        "  assert(#list == count and #nulls == 0 and (count > 0 or body == ''))\n"
        "  return list\n"
        "end\n"
        "is('a b c', ids())\n"
        "is('a c', ids {skip = {b = true}})\n"
        "is('b', ids {only = {b = true, d = true}})\n"
        "is('b', ids {only = {b = true, c = true}, skip = {c = true}, base64 = true})\n"
        "is('', ids {only = {}})\n"
        "a = answer('', '')\n"
        "is('', ids {})\n"
        "assert(not pcall(records.add_body, a, 1))\n"
        "assert(not pcall(records.add_body, a, {only = 'a'}))\n");
}

static void vectors_with_holes_are_left_out(void **state)
{
    run("local a = answer('`a`,`b`,`c`', '[1,2],[1,null],[3,4]')\n"
        "for _, base64 in ipairs {true, false} do\n"
        "  local body, count, nulls = records.add_body(a, {base64 = base64})\n"
        "  assert(count == 2)\n"
        "  is('b', nulls)\n"
        "  is('a c', records.ids(body))\n"
        "end\n"
        "local body, count, nulls = records.add_body(answer('`a`', '[null]'), {})\n"
        "assert(body == '' and count == 0)\n"
        "is('a', nulls)\n"
        "body, count, nulls = records.add_body(a, {skip = {b = true}})\n"
        "assert(#nulls == 0 and count == 2)\n");
}

static void broken_answers(void **state)
{
    run("for _, f in ipairs {function(a) return records.add_body(a, {}) end, records.hash} do\n"
        "  refused('an id is there twice', f(answer('`a`,`a`', '[1],[1]')))\n"
        "  refused('lists of different length', f(answer('`a`,`b`', '[1]')))\n"
        "  refused('an embedding that is no list of numbers', f(answer('`a`', '[`x`]')))\n"
        "  refused('an embedding that is no list', f(answer('`a`', 'null')))\n"
        "  refused('no embeddings', f('{`ids`:[`a`],`embeddings`:null}'))\n"
        "end\n"
        "refused('dimensions differ', records.add_body(answer('`a`,`b`', '[1],[1,2]'), {}))\n"
        "local good = answer('`a`', '[1]')\n"
        "for _, bad in ipairs { '', '{}', '[[[', answer('`a`,`b`', '[1]'), answer('`a`,`a`', "
        "'[1],[1]'),\n"
        "    answer('`a`', '[`x`]') } do\n"
        "  local r, why = records.compare(good, bad, {})\n"
        "  assert(r == nil and (why:find('^the second: ') or why:find('numbers')), why)\n"
        "  r, why = records.compare(bad, good, {})\n"
        "  assert(r == nil and (why:find('^the first: ') or why:find('numbers')), why)\n"
        "end\n"
        "refused('the first: an id is there twice',\n"
        "  records.compare(answer('`z`,`z`', '[1],[1]'), good, {}))\n"
        "assert(not pcall(records.compare, good, good, {ulps = 0}))\n"
        "assert(not pcall(records.compare, good, good, {ulps = 'many'}))\n");
}

static void what_differs(void **state)
{
    run("local a = answer('`a`,`b`,`c`,`\\\\u0064`', '[1],[2],[3],[4]', {metadatas =\n"
        "  '{`x`:1,`y`:2},{},null,{`x`:1}'})\n"
        "local b = answer('`d`,`e`,`c`,`b`,`f`', '[4],[5],[3.5],[2],[6]', {metadatas =\n"
        "  '{`x`:1.0},null,null,null,null'})\n"
        "local r = records.compare(a, b, {})\n"
        "assert(r.equal == 1)\n"
        "is('c d', r.changed)\n"
        "is('a', r.only_a)\n"
        "is('e f', r.only_b)\n"
        "is('', r.nan)\n"
        "r = records.compare(a, a)\n"
        "assert(r.equal == 4 and #r.changed + #r.only_a + #r.only_b == 0)\n"
        "r = records.compare(answer('', ''), b, {})\n"
        "assert(r.equal == 0)\n"
        "is('d e c b f', r.only_b)\n");
}

static void cosine_has_a_tolerance(void **state)
{
    run("local a, b = answer('`a`,`b`', '[4,1],[1,2]'), answer('`a`,`b`', "
        "'[3.9999998,1],[1,2.00001]')\n"
        "local r = records.compare(a, b, {cosine = true})\n"
        "assert(r.equal == 1)\n"
        "is('b', r.changed)\n"
        "is('a b', records.compare(a, b, {}).changed)\n"
        "is('a b', records.compare(a, b, {ulps = 100}).changed)\n"
        "assert(records.compare(a, b, {cosine = true, ulps = 100}).equal == 2)\n"
        "a, b = answer('`a`,`b`', '[null],[1]'), answer('`b`,`a`', '[null],[null]')\n"
        "r = records.compare(a, b, {cosine = true})\n"
        "is('b', r.changed)\n"
        "is('a b', r.nan)\n"
        "assert(r.equal == 1)\n");
}

static void hashes(void **state)
{
    run("local h = records.hash(answer('`a`,`b`,`c`', '[1],[1.0],[2]', {metadatas =\n"
        "  '{`x`:1,`y`:2},{`y`:2,`x`:1},{`x`:1,`y`:2}'}))\n"
        "assert(h.a == h.b and h.a ~= h.c and h.a:find('^%x+$') and #h.a == 16)\n"
        "assert(next(records.hash(answer('', ''))) == nil)\n");
}

/* After a refusal or an error in the middle nothing of it is in the next answer. */
static void nothing_is_left_behind(void **state)
{
    run("local good = answer('`a`,`b`', '[1],[2]')\n"
        "local due = records.add_body(good, {base64 = true})\n"
        "for _ = 1, 3 do\n"
        "  refused('lists of different length', records.add_body(answer('`a`,`b`', '[1]'), {}))\n"
        "  assert(not pcall(records.compare, good, {}, {}))\n"
        "  assert(records.add_body(good, {base64 = true}) == due)\n"
        "  assert(records.compare(good, good, {}).equal == 2)\n"
        "end\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids),
        cmocka_unit_test(a_body_holds_the_bytes_of_the_answer),
        cmocka_unit_test(a_body_of_some),
        cmocka_unit_test(vectors_with_holes_are_left_out),
        cmocka_unit_test(broken_answers),
        cmocka_unit_test(what_differs),
        cmocka_unit_test(cosine_has_a_tolerance),
        cmocka_unit_test(hashes),
        cmocka_unit_test(nothing_is_left_behind),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
