/* settings_test.c: what the config file may not do to the program that reads it, and how its
 * mistakes are told. What the values mean is config_test's. */
#include "settings.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static char path[] = "/tmp/settings_test.XXXXXX";

/* Reads a file with this text; the mistakes, or "". */
static const char *load(const char *text)
{
    static char told[4096];
    char *none[] = {NULL};
    const struct settings_sources from = {.file = path, .environment = none};
    struct buf errors;
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    buf_init(&errors, sizeof told - 1);
    struct config *c = settings_load(&from, &errors);
    snprintf(told, sizeof told, "%.*s", (int)buf_len(&errors), buf_data(&errors));
    assert_int_equal(c != NULL, told[0] == 0);
    config_free(c);
    buf_fini(&errors);
    return told;
}

static void tells(const char *text, const char *part)
{
    const char *told = load(text);
    if (!strstr(told, part) || !strstr(told, path) || strchr(told, '\n')[1])
        fail_msg("%s: \"%s\"", text, told);
}

static void a_file_is_a_program(void **state)
{
    assert_string_equal(load("local t = {}\n"
                             "for i = 1, 2 do t[i] = {name = ('n'):rep(i), url = "
                             "'http://127.0.0.1:' .. math.max(i, 1)} end\n"
                             "table.sort(t, function(a, b) return a.name < b.name end)\n"
                             "return {instances = t}\n"),
                        "");
}

static void an_endless_file_ends(void **state)
{
    tells("while true do end", ":1: used more than 10000000 instructions");
    tells("\nwhile true do pcall(function() while true do end end) end",
          ":2: used more than 10000000 instructions");
    tells("\nlocal t = setmetatable({}, {__index = function(t, k)\n"
          "  while true do end end})\nwhile true do pcall(function() return t.x end) end",
          ":3: used more than 10000000 instructions");
}

static void a_file_gets_so_much_memory(void **state)
{
    tells("local s = ('x'):rep(2 ^ 30) return {}", "not enough memory");
    tells("local s = 'x' while true do s = s .. s end", "not enough memory");
    tells("local t = {} for i = 1, 1e9 do t[i] = {} end", "");
}

static void any_error_is_told(void **state)
{
    tells("error('no such luck')", ":1: no such luck");
    tells("error({})", ": error object is a table value");
    tells("error()", ": error object is a nil value");
    tells("return {", ":1: ");
    tells("return 5", "expected it to return a table of settings, found a number");
    tells("os.exit(3)", "'os'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_is_a_program),
        cmocka_unit_test(an_endless_file_ends),
        cmocka_unit_test(a_file_gets_so_much_memory),
        cmocka_unit_test(any_error_is_told),
    };
    int fd = mkstemp(path);
    if (fd < 0)
        return 1;
    close(fd);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    (void)unlink(path);
    return failed;
}
