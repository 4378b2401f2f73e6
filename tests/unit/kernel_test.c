/* kernel_test.c: the kernel's formats, cut at every byte in front of a page that may not be read,
 * and garbage. */
#include "kernel.h"

#include "guard.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define STAT                                                                                       \
    "4711 (a) R (b) S 1 4711 4711 0 -1 4194560 100 0 3 0 250 50 0 0 20 0 12 0 98765 1000 200 "     \
    "18446"
#define CGROUP_V1 "9:name=systemd:/\n5:cpu,cpuacct:/c/d\n4:memory:/a/b\n0::/v2\n"
#define MOUNT                                                                                      \
    "35 31 0:32 /docker/abc /sys/fs/cgroup/mem\\040ory rw,relatime shared:1 master:2 - cgroup "    \
    "cgroup rw,memory"
#define SOCKET                                                                                     \
    "   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 "  \
    "34822 1 000000002190117d 100 0 0 10 0"

static void a_processs_name_may_hold_anything(void **state)
{
    uint64_t used, started;
    assert_true(kernel_stat(STR(STAT), &used, &started));
    assert_int_equal(used, 300);
    assert_int_equal(started, 98765);
    assert_false(kernel_stat(STR("4711 (a S 1 2 3"), &used, &started));
    assert_false(
        kernel_stat(STR("1 (a) S x x x x x x x x x x 1 1 1 1 1 1 1 1 zero"), &used, &started));
}

static void memory_is_pages(void **state)
{
    uint64_t resident, shared;
    assert_true(kernel_statm(STR("584292 177350 13687 6802 0 228557 0\n"), &resident, &shared));
    assert_int_equal(resident, 177350);
    assert_int_equal(shared, 13687);
    assert_true(kernel_statm(STR("1 2 3"), &resident, &shared));
    assert_int_equal(shared, 2);
    assert_false(kernel_statm(STR("1 2"), &resident, &shared));
    assert_false(kernel_statm(STR("1 -2 3"), &resident, &shared));
}

static void figures_are_found_by_their_whole_name(void **state)
{
    uint64_t n = 7;
    struct str text = STR("total_inactive_file 4\ninactive_file 12\nMemTotal:   24684092 kB\n");
    assert_true(kernel_figure(text, "inactive_file", &n));
    assert_int_equal(n, 12);
    assert_true(kernel_figure(text, "MemTotal", &n));
    assert_int_equal(n, 24684092);
    assert_false(kernel_figure(text, "inactive", &n));
    assert_false(kernel_figure(text, "file", &n));
    assert_false(kernel_figure(STR("inactive_file"), "inactive_file", &n));
    assert_false(kernel_figure(STR("inactive_file many"), "inactive_file", &n));
    assert_int_equal(n, 24684092);
}

static void limits_are_numbers_or_none(void **state)
{
    int64_t n = 7;
    double cores = 7;
    assert_true(kernel_limit(STR("99999744\n"), &n) && n == 99999744);
    assert_true(kernel_limit(STR("max\n"), &n) && n == KERNEL_NONE);
    assert_true(kernel_limit(STR("-1\n"), &n) && n == KERNEL_NONE);
    assert_true(kernel_limit(STR("18446744073709551615"), &n) && n == KERNEL_NONE);
    n = 7;
    assert_false(kernel_limit(STR(""), &n));
    assert_false(kernel_limit(STR("\n"), &n));
    assert_false(kernel_limit(STR("1e9"), &n));
    assert_false(kernel_limit(STR("18446744073709551616"), &n));
    assert_int_equal(n, 7);
    assert_true(kernel_cpu_max(STR("40000 100000\n"), &cores) && cores == 0.4);
    assert_true(kernel_cpu_max(STR("max 100000\n"), &cores) && cores == 0);
    assert_false(kernel_cpu_max(STR("40000"), &cores));
    assert_false(kernel_cpu_max(STR("40000 0"), &cores));
    assert_false(kernel_cpu_max(STR("40000 max"), &cores));
    assert_int_equal(kernel_list(STR(" 0-1\n")), 2);
    assert_int_equal(kernel_list(STR("0-2,5,7-8")), 6);
    static const char *const bad[] = {"", "a", "2-1", "1-", "-1", ",", "0,,1", "0-99999999999"};
    for (unsigned i = 0; i < COUNT_OF(bad); i++)
        assert_int_equal(kernel_list(str_from(bad[i])), 0);
}

static void a_controller_of_v1_comes_before_v2(void **state)
{
    struct str path;
    bool v2;
    assert_true(kernel_cgroup(STR(CGROUP_V1), "memory", &path, &v2));
    assert_true(str_eq(path, STR("/a/b")) && !v2);
    assert_true(kernel_cgroup(STR(CGROUP_V1), "cpu", &path, &v2));
    assert_true(str_eq(path, STR("/c/d")) && !v2);
    assert_true(kernel_cgroup(STR(CGROUP_V1), "io", &path, &v2));
    assert_true(str_eq(path, STR("/v2")) && v2);
    assert_false(kernel_cgroup(STR("4:memory\n0:\n:::\n"), "memory", &path, &v2));
    assert_false(kernel_cgroup(STR("4:memory:a\n"), "memory", &path, &v2));
}

static void mounts_say_what_is_where(void **state)
{
    static struct kernel_mount m;
    assert_true(kernel_mount(STR(MOUNT), &m));
    assert_string_equal(m.root, "/docker/abc");
    assert_string_equal(m.point, "/sys/fs/cgroup/mem ory");
    assert_true(str_eq(m.type, STR("cgroup")));
    assert_true(kernel_among(m.options, "memory"));
    assert_false(kernel_among(m.options, "mem"));
    assert_false(kernel_mount(STR("1 2 3 / /a\\9 rw - cgroup cgroup rw"), &m));
    assert_false(kernel_mount(STR("1 2 3 / /a\\04 rw - cgroup cgroup rw"), &m));
    assert_false(kernel_mount(STR("1 2 3 / /a\\000 rw - cgroup cgroup rw"), &m));
    assert_false(kernel_mount(STR("1 2 3 a b rw - cgroup cgroup rw"), &m));
    assert_false(kernel_mount(STR("1 2 3 / /a rw shared:1"), &m));
    char *longer = base_printf("1 2 3 / /%0*d rw - cgroup2 cgroup rw", KERNEL_PATH_MAX, 0);
    assert_false(kernel_mount(str_from(longer), &m));
    free(longer);
}

static void only_sockets_that_listen_count(void **state)
{
    static const uint8_t local[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 127, 0, 0, 1};
    static const uint8_t local6[16] = {[15] = 1};
    struct kernel_socket s;
    assert_true(kernel_listener(STR(SOCKET), &s));
    assert_memory_equal(s.address, local, 16);
    assert_int_equal(s.port, 8080);
    assert_int_equal(s.inode, 34822);
    assert_true(kernel_listener(
        STR("0: 00000000000000000000000001000000:1F40 00000000000000000000000000000000:0000 0A "
            "00000000:00000000 00:00000000 00000000 1000 0 77 1 0 100 0 0 10 0"),
        &s));
    assert_memory_equal(s.address, local6, 16);
    assert_int_equal(s.port, 8000);
    char line[sizeof SOCKET];
    memcpy(line, SOCKET, sizeof line);
    memcpy(strstr(line, " 0A ") + 1, "01", 2);
    assert_false(kernel_listener(str_from(line), &s)); /* established */
    assert_false(kernel_listener(STR("  sl  local_address rem_address   st tx_queue"), &s));
    assert_false(kernel_listener(STR("0: 0100007F:1F90F 0:0 0A 1 2 3 4 5 6"), &s));
    assert_false(kernel_listener(STR("0: 0100007:1F90 0:0 0A 1 2 3 4 5 6"), &s));
    assert_false(kernel_listener(STR("0: 0100007F:1F90 0:0 0A 1 2 3 4 5 0"), &s));
}

/* Every parser over every prefix, and over each with one byte changed. */
static void look(const char *p, size_t n)
{
    static struct kernel_mount m;
    struct str text = {p, n}, rest = text, piece;
    struct kernel_socket socket;
    uint64_t a, b;
    int64_t limit;
    double cores;
    bool v2;
    unsigned good = kernel_stat(text, &a, &b) + kernel_statm(text, &a, &b) +
                    kernel_figure(text, "inactive_file", &a) + kernel_list(text) +
                    kernel_limit(text, &limit) + kernel_cpu_max(text, &cores) +
                    kernel_cgroup(text, "memory", &piece, &v2) + kernel_mount(text, &m) +
                    kernel_listener(text, &socket);
    (void)good;
    size_t total = 0;
    while (kernel_line(&rest, &piece))
        total += piece.n;
    assert_true(total <= n);
}

static void cut_and_garbled_text_is_survived(void **state)
{
    static const char *const texts[] = {
        STAT, CGROUP_V1, MOUNT, SOCKET, "0-2,5,7-8\n", "40000 100000\n", "x 1\ninactive_file 12\n"};
    static const char odd[] = {0, ' ', '\n', ':', ')', ',', '-', '\\', '/', '9', 'f', (char)255};
    struct guard g = guard_new(4096);
    char copy[512];
    for (unsigned t = 0; t < COUNT_OF(texts); t++) {
        size_t all = strlen(texts[t]);
        for (size_t n = 0; n <= all; n++)
            look(guard_put(&g, texts[t], n), n);
        for (size_t i = 0; i < all; i++)
            for (unsigned k = 0; k < COUNT_OF(odd); k++) {
                memcpy(copy, texts[t], all);
                copy[i] = odd[k];
                look(guard_put(&g, copy, all), all);
            }
    }
    guard_free(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_processs_name_may_hold_anything),
        cmocka_unit_test(memory_is_pages),
        cmocka_unit_test(figures_are_found_by_their_whole_name),
        cmocka_unit_test(limits_are_numbers_or_none),
        cmocka_unit_test(a_controller_of_v1_comes_before_v2),
        cmocka_unit_test(mounts_say_what_is_where),
        cmocka_unit_test(only_sockets_that_listen_count),
        cmocka_unit_test(cut_and_garbled_text_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
