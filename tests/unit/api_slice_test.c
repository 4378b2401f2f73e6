/* api_slice_test.c: require("chromux.slice") on a VM of its own. A program checks with assert(). */
#include "api_slice.h"
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
    api_slice_open(vm);
    return 0;
}

static int stop(void **state)
{
    script_free(vm);
    return 0;
}

/* What programs find beside the module: refused(why, results of a call), same(a, b) of lists, and
 * raises(why, fn, ...). */
static const char prelude[] =
    "local slice = require('chromux.slice')\n"
    "local function refused(why, value, got)\n"
    "  if value ~= nil or not tostring(got):find(why, 1, true) then\n"
    "    error(('%s, %s is not: %s'):format(tostring(value), tostring(got), why), 2) end\n"
    "end\n"
    "local function same(a, b)\n"
    "  if #a ~= #b or table.concat(a, '\\1') ~= table.concat(b, '\\1') then\n"
    "    error(table.concat(a, ' | ') .. ' is not ' .. table.concat(b, ' | '), 2) end\n"
    "end\n"
    "local function raises(why, fn, ...)\n"
    "  local ok, got = pcall(fn, ...)\n"
    "  if ok or not tostring(got):find(why, 1, true) then\n"
    "    error(('%s is not: %s'):format(tostring(got), why), 2) end\n"
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
    assert_int_equal(lua_gettop(vm), 0);
}

static void members_are_raw(void **state)
{
    run("local m = slice.members(' {`a`:1.0, `b\\\\u0041` : [1, 2] ,``:null,`t`:` x`} ')\n"
        "assert(m.a == '1.0' and m.bA == '[1, 2]' and m[''] == 'null' and m.t == '` x`')\n"
        "local n = 0 for _ in pairs(m) do n = n + 1 end assert(n == 4)\n"
        "assert(next(slice.members('{}')) == nil)\n"
        "refused('a member is there twice', slice.members('{`a`:1,`a`:1}'))\n"
        "refused('a member is there twice', slice.members('{`a`:1,`\\\\u0061`:1}'))\n"
        "refused('not an object', slice.members('[1]'))\n"
        "refused('not JSON: no JSON value starts so, at byte 6', slice.members('{`a`:NaN}'))\n"
        "refused('not JSON', slice.members(''))\n"
        "raises('string expected', slice.members)\n");
}

static void elements_are_raw(void **state)
{
    run("same(slice.elements('[1, 1.0 ,`a,]`,{`b` : 2}]'), {'1', '1.0', '`a,]`', '{`b` : 2}'})\n"
        "assert(#slice.elements(' [ ] ') == 0)\n"
        "refused('not an array', slice.elements('{}'))\n"
        "refused('something follows the value', slice.elements('[1]x'))\n");
}

static void strings_go_both_ways(void **state)
{
    run("assert(slice.string('`a\\\\u00e9\\\\ud83d\\\\ude00\\\\n`') == "
        "'a\\195\\169\\240\\159\\152\\128\\n')\n"
        "assert(slice.string('`\\\\u0000`') == '\\0')\n"
        "refused('not a JSON string', slice.string('1'))\n"
        "refused('not a JSON string', slice.string('`\\\\ud83d`'))\n"
        "refused('not a JSON string', slice.string('`a` '))\n"
        "assert(slice.quote('a`b\\\\c/') == '`a\\\\`b\\\\\\\\c/`')\n"
        "assert(slice.quote('') == '``' and slice.quote('\\255x') == '`\\239\\191\\189x`')\n"
        "for c = 0, 127 do\n"
        "  local s = ('x'):rep(c % 9) .. string.char(c) .. 'y'\n"
        "  assert(slice.string(slice.quote(s)) == s, c)\n"
        "end\n");
}

static void canonical_and_hash(void **state)
{
    run("assert(slice.canonical('{`b`: 1.50, `a`: [1, 1.0]}') == '{`a`:[1,1.0],`b`:1.5}')\n"
        "refused('not JSON', slice.canonical('{'))\n"
        "refused('too big', slice.canonical((' '):rep(100 * 1024 * 1024) .. '1'))\n"
        "assert(slice.hash('') == 'cbf29ce484222325' and slice.hash('a') == 'af63dc4c8601ec8c')\n");
}

static void records_tell_count_ids_and_shape(void **state)
{
    run("local info = slice.records('{`ids`:[`a`,`\\\\u0062`],`documents`:[`x`,null],'\n"
        "  .. '`embeddings`:[[1,2.5, 3],[4,5,6]]}', 1000)\n"
        "assert(info.count == 2 and info.dimension == 3)\n"
        "same(info.ids, {'a', 'b'})\n"
        "assert(info.shape == 'documents,embeddings:list:3,ids', info.shape)\n"
        "info = slice.records('{`metadatas`:[{`k`:[1]}],`ids`:[`a`],`uris`:null,'\n"
        "  .. '`embeddings`:[`AAAAAAAAAAA=`]}', 1000)\n"
        "assert(info.count == 1 and info.dimension == 2)\n"
        "assert(info.shape == 'embeddings:b64:2,ids,metadatas,uris:null', info.shape)\n"
        "info = slice.records('{`ids`:[`a`,`b`],`embeddings`:[null,[1]]}', 1000)\n"
        "assert(info.shape == 'embeddings:list:1:holes,ids' and info.dimension == 1)\n"
        "info = slice.records('{`ids`:[`a`],`embeddings`:[null]}', 1000)\n"
        "assert(info.shape == 'embeddings:list:0:holes,ids' and info.dimension == nil)\n"
        "info = slice.records('{`ids`:[`a`],`embeddings`:null}', 1000)\n"
        "assert(info.shape == 'embeddings:null,ids')\n");
}

static void records_that_cannot_be_grouped(void **state)
{
    run("local function no(why, text) refused(why, slice.records(text, 1000)) end\n"
        "no('not JSON', '{`ids`:[`a`]')\n"
        "no('not an object', '[`a`]')\n"
        "no('no ids', '{`documents`:[`a`]}')\n"
        "no('no ids', '{}')\n"
        "no('no list', '{`ids`:null}')\n"
        "no('no list', '{`ids`:`a`}')\n"
        "no('without elements', '{`ids`:[]}')\n"
        "no('an id that is not text', '{`ids`:[`a`,1]}')\n"
        "no('an id that is not text', '{`ids`:[null]}')\n"
        "no('an id is there twice', '{`ids`:[`a`,`b`,`a`]}')\n"
        "no('an id is there twice', '{`ids`:[`a`,`\\\\u0061`]}')\n"
        "no('a member is there twice', '{`ids`:[`a`],`ids`:[`b`]}')\n"
        "no('a member is there twice', '{`ids`:[`a`],`uris`:null,`uris`:null}')\n"
        "no('not known', '{`ids`:[`a`],`extra`:[1]}')\n"
        "no('different length', '{`ids`:[`a`],`documents`:[`x`,`y`]}')\n"
        "no('without elements', '{`ids`:[`a`],`documents`:[]}')\n"
        "no('no list', '{`ids`:[`a`],`documents`:`x`}')\n"
        "no('a document that', '{`ids`:[`a`],`documents`:[1]}')\n"
        "no('a uri that', '{`ids`:[`a`],`uris`:[{}]}')\n"
        "no('a metadata that', '{`ids`:[`a`],`metadatas`:[`m`]}')\n"
        "no('an embedding that is no list', '{`ids`:[`a`],`embeddings`:[1]}')\n"
        "no('no list of numbers', '{`ids`:[`a`],`embeddings`:[[]]}')\n"
        "no('no list of numbers', '{`ids`:[`a`],`embeddings`:[[1,null]]}')\n"
        "no('no list of numbers', '{`ids`:[`a`],`embeddings`:[[[1]]]}')\n"
        "no('no list of numbers', '{`ids`:[`a`],`embeddings`:[`AAAA`]}')\n"
        "no('no list of numbers', '{`ids`:[`a`],`embeddings`:[`AAAAA`]}')\n"
        "no('no list of numbers', '{`ids`:[`a`],`embeddings`:[``]}')\n"
        "no('dimensions differ', '{`ids`:[`a`,`b`],`embeddings`:[[1],[1,2]]}')\n"
        "no('dimensions differ', '{`ids`:[`a`,`b`],`embeddings`:[`AAAAAA==`,`AAAAAAAAAAA=`]}')\n"
        "no('encodings differ', '{`ids`:[`a`,`b`],`embeddings`:[[1],`AAAAAA==`]}')\n"
        "assert(slice.records('{`ids`:[`a`]}', 13))\n"
        "refused('too big', slice.records('{`ids`:[`a`]}', 12))\n"
        "raises('number expected', slice.records, '{}')\n");
}

static void join_keeps_the_bytes_of_elements(void **state)
{
    run("local a = '{`ids`: [`a`, `\\\\u0062`], `embeddings`: [[1, 1.0],[9007199254740993,-0.0]]'\n"
        "  .. ',`uris`:null}'\n"
        "local b = '{`uris`:null,`embeddings`:[[1e2,0.10]],`ids`:[`c`]}'\n"
        "local both = slice.join({a, b})\n"
        "assert(both == '{`embeddings`:[[1, 1.0],[9007199254740993,-0.0],[1e2,0.10]],'\n"
        "  .. '`ids`:[`a`, `\\\\u0062`,`c`],`uris`:null}', both)\n"
        "same(slice.records(both, 1e6).ids, {'a', 'b', 'c'})\n"
        "assert(slice.join({b}) == '{`embeddings`:[[1e2,0.10]],`ids`:[`c`],`uris`:null}')\n");
}

static void join_refuses_other_shapes(void **state)
{
    run("local a = '{`ids`:[`a`],`embeddings`:[[1,2]],`documents`:[`x`]}'\n"
        "local shape = slice.records(a, 1000).shape\n"
        "for _, b in ipairs({\n"
        "  '{`ids`:[`b`],`embeddings`:[[1,2]]}',\n"
        "  '{`ids`:[`b`],`embeddings`:[[1,2]],`documents`:null}',\n"
        "  '{`ids`:[`b`],`embeddings`:[[1,2,3]],`documents`:[`x`]}',\n"
        "  '{`ids`:[`b`],`embeddings`:[`AAAAAAAAAAA=`],`documents`:[`x`]}',\n"
        "  '{`ids`:[`b`,`c`],`embeddings`:[[1,2],null],`documents`:[`x`,`y`]}',\n"
        "  '{`ids`:[`b`],`embeddings`:[[1,2]],`documents`:[`x`],`metadatas`:[{}]}',\n"
        "}) do\n"
        "  assert(slice.records(b, 1000).shape ~= shape, b)\n"
        "  raises('text 2 has the shape', slice.join, {a, b})\n"
        "end\n"
        "raises('text 2: not JSON', slice.join, {a, '{'})\n"
        "raises('text 1: no ids', slice.join, {'{}', a})\n"
        "raises('texts are needed', slice.join, {a, 1})\n"
        "raises('nothing to join', slice.join, {})\n");
}

/* Bodies made of the same random elements one by one and by join() hold the same. */
static void join_of_random_bodies_holds_all(void **state)
{
    run("math.randomseed(7)\n"
        "local r = math.random\n"
        "local function number()\n"
        "  local forms = {'%d', '%d.0', '-%d.50', '%de3', '%d.25E-2', ' %d'}\n"
        "  return forms[r(#forms)]:format(r(0, 99999))\n"
        "end\n"
        "local function text()\n"
        "  local out = {}\n"
        "  for i = 1, r(0, 12) do out[i] = ({'a', '\\\\`', '\\\\\\\\', ']', '}', ',', '\\\\u0041', "
        "'\\195\\169', ' '})[r(9)] end\n"
        "  return '`' .. table.concat(out) .. '`'\n"
        "end\n"
        "local serial = 0\n"
        "local make = {\n"
        "  ids = function() serial = serial + 1 return '`i' .. serial .. '`' end,\n"
        "  documents = function() return r(4) == 1 and 'null' or text() end,\n"
        "  metadatas = function()\n"
        "    return r(4) == 1 and 'null' or '{`k`: ' .. number() .. ', ' .. text() .. ':' .. "
        "text() .. '}'\n"
        "  end,\n"
        "  embeddings = function() return '[' .. number() .. ', ' .. number() .. ']' end,\n"
        "}\n"
        "for round = 1, 300 do\n"
        "  local names, texts, elements, ids = {'ids', 'embeddings'}, {}, {}, {}\n"
        "  if r(2) == 1 then names[#names + 1] = 'documents' end\n"
        "  if r(2) == 1 then names[#names + 1] = 'metadatas' end\n"
        "  for _, name in ipairs(names) do elements[name] = {} end\n"
        "  for i = 1, r(5) do\n"
        "    local n, members = r(4), {}\n"
        "    for _, name in ipairs(names) do\n"
        "      local list = {}\n"
        "      for j = 1, n do\n"
        "        list[j] = make[name]()\n"
        "        table.insert(elements[name], list[j])\n"
        "      end\n"
        "      local sep = ({',', ' ,', ', ', '\\n,\\t'})[r(4)]\n"
        "      table.insert(members, r(#members + 1),\n"
        "        '`' .. name .. '` : [' .. table.concat(list, sep) .. ' ]')\n"
        "    end\n"
        "    texts[i] = '{' .. table.concat(members, ', ') .. '}'\n"
        "    for _, id in ipairs(slice.records(texts[i], 1e6).ids) do ids[#ids + 1] = id end\n"
        "  end\n"
        "  local body = slice.join(texts)\n"
        "  local info = slice.records(body, 1e6)\n"
        "  assert(info.count == #ids and info.shape == slice.records(texts[1], 1e6).shape)\n"
        "  same(info.ids, ids)\n"
        "  local members = slice.members(body)\n"
        "  for name, raw in pairs(members) do same(slice.elements(raw), elements[name]) end\n"
        "  for _, name in ipairs(names) do assert(members[name]) end\n"
        "end\n");
}

static void delete_tells_what_it_names(void **state)
{
    run("local d = slice.delete('{`ids`:[`a`,`b`,`a`],`where`:{`k`: {`$gt`: 1.0}},`limit`:5}')\n"
        "same(d.ids, {'a', 'b', 'a'})\n"
        "assert(d.where == '{`k`: {`$gt`: 1.0}}' and d.limit == '5')\n"
        "assert(d.where_document == nil and d.other == nil)\n"
        "d = "
        "slice.delete('{`ids`:null,`where`:null,`where_document`:{`$contains`:`x`},`limit`:null}')"
        "\n"
        "assert(not d.ids and not d.where and not d.limit and not d.other)\n"
        "assert(d.where_document == '{`$contains`:`x`}')\n"
        "assert(slice.delete('{`x`:null}').other == true)\n"
        "assert(next(slice.delete('{}')) == nil and #slice.delete('{`ids`:[]}').ids == 0)\n"
        "refused('ids that are no list', slice.delete('{`ids`:`a`}'))\n"
        "refused('an id that is not text', slice.delete('{`ids`:[1]}'))\n"
        "refused('a member is there twice', slice.delete('{`ids`:null,`ids`:[`a`]}'))\n"
        "refused('not an object', slice.delete('null'))\n"
        "refused('not JSON', slice.delete('{`ids`:[`a`]'))\n");
}

static void ids_make_a_body(void **state)
{
    run("assert(slice.ids_body({'a', 'b`\\n'}) == '{`ids`:[`a`,`b\\\\`\\\\u000a`]}')\n"
        "assert(slice.ids_body({}) == '{`ids`:[]}')\n"
        "raises('ids are strings', slice.ids_body, {'a', 1})\n"
        "local ids = {}\n"
        "for i = 1, 100000 do ids[i] = 'id-' .. i end\n"
        "same(slice.records(slice.ids_body(ids), 1e8).ids, ids)\n");
}

static void collections_change_their_id(void **state)
{
    run("local id, new = '6b1f3c9e-0f6b-4b6e-9d0a-1f2e3d4c5b6a', ('x'):rep(36)\n"
        "local text = ' {`metadata`:{`id`:`no`}, `id` : `' .. id .. '`, `name`:`n\\\\u00e9`,'\n"
        "  .. '`tenant`:`t`,`database`:`d`,`dimension`:384}'\n"
        "local c = slice.collection(text)\n"
        "assert(c.id == id and c.name == 'n\\195\\169' and c.tenant == 't' and c.database == 'd')\n"
        "assert(c.dimension == 384 and text:sub(c.id_at, c.id_at + 35) == id)\n"
        "local changed = slice.replace_at(text, c.id_at, new)\n"
        "assert(changed == text:gsub(id:gsub('%-', '%%-'), new))\n"
        "assert(slice.collection(changed).id == new)\n"
        "text = text:gsub('384', 'null')\n"
        "assert(slice.collection(text).dimension == nil)\n"
        "refused('not a collection', slice.collection('{`id`:`' .. id .. '`}'))\n"
        "refused('not a collection', slice.collection((text:gsub('`t`', '1'))))\n"
        "refused('36 bytes', slice.collection((text:gsub('6b1f', '6b1'))))\n"
        "refused('36 bytes', slice.collection((text:gsub('6b1f3c', '\\\\u0061'))))\n"
        "refused('there twice', slice.collection((text:gsub('`metadata`', '`id`'))))\n"
        "refused('not an object', slice.collection('[]'))\n"
        "assert(slice.replace_at('abc', 1, 'xyz') == 'xyz' and slice.replace_at('abc', 3, 'x') == "
        "'abx')\n"
        "raises('outside', slice.replace_at, 'abc', 2, 'xyz')\n"
        "raises('outside', slice.replace_at, 'abc', 0, 'x')\n");
}

/* An error in the middle loses nothing: the next call finds its scratch memory as it should. */
static void errors_leave_nothing_behind(void **state)
{
    run("for _ = 1, 100 do\n"
        "  pcall(slice.ids_body, {('a'):rep(100000), 1})\n"
        "  pcall(slice.join, {'{`ids`:[`\\\\u0061`]}', '{'})\n"
        "  assert(slice.ids_body({'b'}) == '{`ids`:[`b`]}')\n"
        "  assert(slice.string('`\\\\u0062`') == 'b')\n"
        "end\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(members_are_raw),
        cmocka_unit_test(elements_are_raw),
        cmocka_unit_test(strings_go_both_ways),
        cmocka_unit_test(canonical_and_hash),
        cmocka_unit_test(records_tell_count_ids_and_shape),
        cmocka_unit_test(records_that_cannot_be_grouped),
        cmocka_unit_test(join_keeps_the_bytes_of_elements),
        cmocka_unit_test(join_refuses_other_shapes),
        cmocka_unit_test(join_of_random_bodies_holds_all),
        cmocka_unit_test(delete_tells_what_it_names),
        cmocka_unit_test(ids_make_a_body),
        cmocka_unit_test(collections_change_their_id),
        cmocka_unit_test(errors_leave_nothing_behind),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
