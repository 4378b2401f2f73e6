/* usage_test.c: processes, control groups of both versions and folders in a tree of files that
 * looks as the kernel's, and this very process in the real one. */
#include "usage.h"

#include "disk.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define MB (1024 * 1024)

static char tree[64]; /* the machine of the test */

/* Writes a file of the tree, and makes the folders above it. */
static void PRINTF(2, 3) put(const char *name, const char *fmt, ...)
{
    char *path = base_printf("%s/%s", tree, name);
    for (char *slash = path + strlen(tree) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = 0;
        (void)mkdir(path, 0700);
        *slash = '/';
    }
    (void)unlink(path); /* perhaps a link out of the tree */
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    va_list args;
    va_start(args, fmt);
    vfprintf(f, fmt, args);
    va_end(args);
    fclose(f);
    free(path);
}

static void put_link(const char *name, const char *to)
{
    put(name, "%s", "");
    char *path = base_printf("%s/%s", tree, name);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink(to, path), 0);
    free(path);
}

/* Process 42: 100 MB resident, 80 of them its own, on a machine of 8 GB and 4 cores. */
static int setup(void **state)
{
    long page = sysconf(_SC_PAGESIZE), tick = sysconf(_SC_CLK_TCK);
    strcpy(tree, "/tmp/usage_test.XXXXXX");
    assert_non_null(mkdtemp(tree));
    put("proc/42/stat", "42 (node (x)) S 1 42 42 0 -1 0 0 0 0 0 %ld %ld 0 0 20 0 9 0 777 0 0",
        3 * tick, 2 * tick);
    put("proc/42/statm", "99999 %ld %ld 0 0 0 0", 100L * MB / page, 20L * MB / page);
    put("proc/42/status", "Name:\tnode\nCpus_allowed:\tf\nCpus_allowed_list:\t0-3\n");
    put("proc/42/limits",
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max open files            1024                 524288               files     \n");
    put_link("proc/42/fd/0", "/dev/null");
    put_link("proc/42/fd/7", "socket:[555]");
    put_link("proc/42/fd/9", "socket:[5]");
    put("proc/meminfo", "MemTotal:        8388608 kB\nMemFree:  1 kB\n");
    usage_root(tree);
    return 0;
}

static int teardown(void **state)
{
    char *argv = base_printf("rm -rf '%s'", tree);
    usage_root("");
    assert_int_equal(system(argv), 0);
    free(argv);
    return 0;
}

static void mount_v1(const char *memory_root)
{
    put("proc/self/mountinfo",
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
        "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 %s /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        memory_root);
}

static void memory_v1(const char *group, long long limit, long long used, long long inactive)
{
    char name[128];
    snprintf(name, sizeof name, "sys/fs/cgroup/memory%s/memory.limit_in_bytes", group);
    put(name, "%lld\n", limit);
    snprintf(name, sizeof name, "sys/fs/cgroup/memory%s/memory.usage_in_bytes", group);
    put(name, "%lld\n", used);
    snprintf(name, sizeof name, "sys/fs/cgroup/memory%s/memory.stat", group);
    put(name, "cache 1\ninactive_file 1\ntotal_inactive_file %lld\n", inactive);
}

static void cpu_v1(const char *group, long quota, long period)
{
    char name[128];
    snprintf(name, sizeof name, "sys/fs/cgroup/cpu%s/cpu.cfs_quota_us", group);
    put(name, "%ld\n", quota);
    snprintf(name, sizeof name, "sys/fs/cgroup/cpu%s/cpu.cfs_period_us", group);
    put(name, "%ld\n", period);
}

static void memory_v2(const char *group, const char *limit, long long used, long long inactive)
{
    char name[128];
    snprintf(name, sizeof name, "sys/fs/cgroup%s/memory.max", group);
    put(name, "%s\n", limit);
    snprintf(name, sizeof name, "sys/fs/cgroup%s/memory.current", group);
    put(name, "%lld\n", used);
    snprintf(name, sizeof name, "sys/fs/cgroup%s/memory.stat", group);
    put(name, "anon 1\nfile 1\ninactive_file %lld\n", inactive);
}

#define NO_LIMIT 9223372036854771712LL

static struct usage of_42(void)
{
    struct usage u;
    usage_root(tree); /* nothing is remembered */
    assert_true(usage_of(42, &u));
    return u;
}

static void a_process_without_limits_has_the_machines(void **state)
{
    struct usage u = of_42();
    assert_true(u.rss == 100 * MB && u.private == 80 * MB);
    assert_true(u.cpu_seconds == 5 && u.started == 777);
    assert_int_equal(u.open_files, 3);
    assert_int_equal(u.max_files, 1024);
    assert_false(u.limited);
    assert_true(u.memory_used == 100 * MB && u.memory_limit == 8192LL * MB);
    assert_true(u.cores == 4);
    mount_v1("/");
    put("proc/42/cgroup", "4:memory:/a/b\n1:cpu,cpuacct:/\n");
    memory_v1("/a/b", NO_LIMIT, 150 * MB, 0);
    memory_v1("/a", 8192LL * MB, 150 * MB, 0); /* as much as there is: none */
    cpu_v1("", -1, 100000);
    u = of_42();
    assert_false(u.limited);
    assert_true(u.memory_used == 100 * MB && u.cores == 4);
}

static void limits_of_v1_count_less_what_can_be_dropped(void **state)
{
    mount_v1("/");
    put("proc/42/cgroup", "4:memory:/a/b\n1:cpu,cpuacct:/c\n0::/\n");
    memory_v1("/a/b", 200 * MB, 150 * MB, 30 * MB);
    cpu_v1("/c", 40000, 100000);
    struct usage u = of_42();
    assert_true(u.limited);
    assert_true(u.memory_used == 120 * MB && u.memory_limit == 200 * MB);
    assert_true(u.cores == 0.4);
    memory_v1("/a/b", 200 * MB, 10 * MB, 30 * MB);
    assert_true(of_42().memory_used == 0);
}

static void the_group_that_is_nearest_to_its_limit_wins(void **state)
{
    mount_v1("/");
    put("proc/42/cgroup", "4:memory:/a/b/c\n1:cpu,cpuacct:/c/d\n");
    memory_v1("/a/b/c", 200 * MB, 100 * MB, 0);
    memory_v1("/a/b", NO_LIMIT, 600 * MB, 0);
    memory_v1("/a", 1000 * MB, 900 * MB, 0);
    memory_v1("", NO_LIMIT, 4000LL * MB, 0);
    cpu_v1("/c/d", 300000, 100000);
    cpu_v1("/c", 50000, 50000);
    struct usage u = of_42();
    assert_true(u.memory_used == 900 * MB && u.memory_limit == 1000 * MB);
    assert_true(u.cores == 1);
    memory_v1("/a/b/c", 105 * MB, 100 * MB, 0);
    u = of_42();
    assert_true(u.memory_used == 100 * MB && u.memory_limit == 105 * MB);
}

static void limits_are_remembered_for_a_while_but_not_what_is_used(void **state)
{
    struct usage u;
    mount_v1("/");
    put("proc/42/cgroup", "4:memory:/a\n");
    memory_v1("/a", 200 * MB, 100 * MB, 0);
    assert_true(of_42().memory_limit == 200 * MB);
    memory_v1("/a", 300 * MB, 150 * MB, 0);
    assert_true(usage_of(42, &u));
    assert_true(u.memory_limit == 200 * MB && u.memory_used == 150 * MB);
    /* Another process of that number. */
    put("proc/42/stat", "42 (node) S 1 42 42 0 -1 0 0 0 0 0 1 1 0 0 20 0 9 0 778 0 0");
    assert_true(usage_of(42, &u));
    assert_true(u.memory_limit == 300 * MB && u.started == 778);
}

static void limits_of_v2_are_read_as_well(void **state)
{
    put("proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n");
    put("proc/42/cgroup", "0::/system.slice/chroma.service\n");
    memory_v2("/system.slice/chroma.service", "max", 150 * MB, 0);
    memory_v2("/system.slice", "300000000", 250000000, 50000000);
    put("sys/fs/cgroup/system.slice/chroma.service/cpu.max", "150000 100000\n");
    put("sys/fs/cgroup/system.slice/cpu.max", "max 100000\n");
    struct usage u = of_42();
    assert_true(u.limited);
    assert_true(u.memory_used == 200000000 && u.memory_limit == 300000000);
    assert_true(u.cores == 1.5);
}

static void a_container_sees_its_own_group_as_the_top(void **state)
{
    mount_v1("/docker/abc");
    put("proc/42/cgroup", "4:memory:/docker/abc\n");
    memory_v1("", 200 * MB, 150 * MB, 0);
    assert_true(of_42().memory_limit == 200 * MB);
    put("proc/42/cgroup", "4:memory:/docker/abc/in\n");
    memory_v1("/in", 100 * MB, 90 * MB, 0);
    assert_true(of_42().memory_limit == 100 * MB);
    /* Another namespace's path, and one beside ours: neither is below what is mounted. */
    put("proc/42/cgroup", "4:memory:/../../other\n");
    assert_true(of_42().memory_limit == 200 * MB);
    put("proc/42/cgroup", "4:memory:/docker/abcd/in\n");
    assert_true(of_42().memory_limit == 200 * MB);
}

static void garbage_of_the_kernel_costs_a_figure_and_no_more(void **state)
{
    struct usage u;
    mount_v1("/");
    put("proc/42/cgroup", "4:memory:/a\n");
    memory_v1("/a", 200 * MB, 150 * MB, 0);
    put("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "many\n");
    put("sys/fs/cgroup/memory/a/memory.stat", "%s", "");
    put("proc/42/limits", "Max open files  unlimited unlimited files\n");
    put("proc/42/status", "Cpus_allowed_list:\t9-3\n");
    u = of_42();
    assert_false(u.limited);
    assert_int_equal(u.max_files, -1);
    assert_true(u.cores >= 1);
    put("proc/42/statm", "1 2\n");
    assert_false(usage_of(42, &u));
    put("proc/42/stat", "%s", "");
    assert_false(usage_of(42, &u));
    assert_false(usage_of(43, &u));
}

static struct usage_place place(const char *address, unsigned port)
{
    struct usage_place p;
    memset(&p, 0, sizeof p);
    struct sockaddr_in *in = (struct sockaddr_in *)&p.address;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&p.address;
    if (inet_pton(AF_INET, address, &in->sin_addr) == 1) {
        in->sin_family = AF_INET;
        in->sin_port = htons((uint16_t)port);
    } else {
        assert_int_equal(inet_pton(AF_INET6, address, &in6->sin6_addr), 1);
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons((uint16_t)port);
    }
    return p;
}

#define LINE(address, port, state, inode)                                                          \
    " 0: " address ":" port " 00000000:0000 " state                                                \
    " 00000000:00000000 00:00000000 00000000 0 0 " inode " 1 0 100 0 0 10 0\n"

static void who_listens_is_found_by_address_and_port(void **state)
{
    /* 8000: one on this address, one on all, one that is only connected; 8001 on all of both. */
    put("proc/net/tcp",
        "  sl  local_address rem_address   st\n" LINE("00000000", "1F40", "0A", "6")
            LINE("0100007F", "1F40", "01", "8") LINE("0100007F", "1F40", "0A", "555"));
    put("proc/net/tcp6", "  sl\n" LINE("00000000000000000000000000000000", "1F41", "0A", "5"));
    struct usage_place p[] = {place("127.0.0.1", 8000), place("10.0.0.1", 8000),
                              place("127.0.0.1", 8001), place("::1", 8001), place("::1", 8000)};
    bool denied;
    usage_find(p, COUNT_OF(p), &denied);
    assert_int_equal(p[0].inode, 555);
    assert_int_equal(p[0].pid, 42);
    assert_int_equal(p[1].inode, 6); /* nobody's that is here */
    assert_int_equal(p[1].pid, 0);
    assert_int_equal(p[2].pid, 42);
    assert_int_equal(p[3].pid, 42);
    assert_int_equal(p[4].inode, 0);
    assert_false(denied);
}

static void a_servers_folder_is_where_its_database_is_open(void **state)
{
    char *shown, *path;
    put_link("proc/42/root", tree);
    put_link("proc/42/cwd", "/srv");
    put("srv/data/chroma.sqlite3", "12345");
    put("proc/42/cmdline", "chroma%crun%c--path%c/elsewhere%c", 0, 0, 0, 0);
    put_link("proc/42/fd/12", "/srv/data/chroma.sqlite3");
    path = usage_folder(42, &shown);
    assert_string_equal(shown, "/srv/data");
    struct disk d;
    assert_true(disk_space(path, &d));
    assert_true(d.total >= d.free && d.percent >= 0 && d.percent <= 100);
    free(path);
    free(shown);
    put_link("proc/42/fd/12", "/srv/data/other");
    static const char *const arguments[][2] = {{"chroma|run|--path|/elsewhere|", "/elsewhere"},
                                               {"chroma|run|--path=/else|--port|1|", "/else"},
                                               {"chroma|run|--path|data|", "/srv/data"},
                                               {"chroma|run|--path|/cut of", "/srv/chroma"},
                                               {"chroma|run|--path|", "/srv/chroma"},
                                               {"", "/srv/chroma"}};
    for (unsigned i = 0; i < COUNT_OF(arguments); i++) {
        put("proc/42/cmdline", "%s", arguments[i][0]);
        char *name =
            base_printf("tr '|' '\\0' <%s/proc/42/cmdline >%s/proc/42/c && mv %s/proc/42/c "
                        "%s/proc/42/cmdline",
                        tree, tree, tree, tree);
        assert_int_equal(system(name), 0);
        free(name);
        path = usage_folder(42, &shown);
        assert_string_equal(shown, arguments[i][1]);
        free(path);
        free(shown);
    }
    char *cwd = base_printf("%s/proc/42/cwd", tree);
    assert_int_equal(unlink(cwd), 0);
    free(cwd);
    assert_null(usage_folder(42, &shown));
}

static void a_folders_size_is_found_in_small_steps(void **state)
{
    int64_t bytes = -1, database = -1;
    unsigned steps = 0;
    char *folder = base_printf("%s/d", tree);
    for (unsigned i = 0; i < 30; i++) {
        char name[64];
        snprintf(name, sizeof name, "d/c%u/data_level0.bin", i);
        put(name, "%*d", 9000, 1);
    }
    put("d/chroma.sqlite3", "%*d", 50000, 1);
    put("d/chroma.sqlite3-journal", "%*d", 5000, 1);
    put("d/1/2/3/4/5/6/7/8/9/deep", "%*d", 100000, 1);
    put_link("d/link", "/");
    struct disk_tree *t = disk_tree_new(folder);
    assert_non_null(t);
    while (!disk_tree_step(t, 7, &bytes, &database))
        steps++;
    assert_true(steps >= 8);
    assert_true(disk_tree_seen(t) >= 30 * 2 + 3);
    assert_true(database >= 55000 && database < 70000);
    assert_true(bytes >= 30 * 9000 + database && bytes < 30 * (9000 + 4096 + 4096) + 200000);
    disk_tree_free(t);
    t = disk_tree_new(folder);
    assert_false(disk_tree_step(t, 40, &bytes, &database));
    disk_tree_free(t); /* half-way */
    free(folder);
    assert_null(disk_tree_new("/nowhere at all"));
}

static unsigned files_of(pid_t pid)
{
    char path[64];
    unsigned n = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *d = opendir(path);
    while (readdir(d))
        n++;
    closedir(d);
    return n - 3; /* . and .., and d itself */
}

static void this_very_process_is_found_and_read(void **state)
{
    struct usage u;
    struct usage_place p = place("127.0.0.1", 0);
    socklen_t len = sizeof(struct sockaddr_in);
    bool denied;
    usage_root("");
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&p.address, len), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&p.address, &len), 0);
    assert_true(usage_is_here((struct sockaddr *)&p.address));
    usage_find(&p, 1, &denied);
    assert_int_equal(p.pid, getpid());
    assert_true(usage_of(getpid(), &u));
    assert_true(u.rss > MB / 4 && u.private > 0 && u.private <= u.rss);
    assert_true(u.memory_limit >= u.memory_used && u.cores > 0 && u.at > 0);
    assert_int_equal(u.open_files, files_of(getpid()));
    close(fd);
    usage_find(&p, 1, &denied);
    assert_int_equal(p.pid, 0);
    struct usage_place far = place("192.0.2.1", 80), near6 = place("::1", 80);
    assert_false(usage_is_here((struct sockaddr *)&far.address));
    assert_true(usage_is_here((struct sockaddr *)&near6.address));
}

#define ON_A_TREE(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_A_TREE(a_process_without_limits_has_the_machines),
        ON_A_TREE(limits_of_v1_count_less_what_can_be_dropped),
        ON_A_TREE(the_group_that_is_nearest_to_its_limit_wins),
        ON_A_TREE(limits_are_remembered_for_a_while_but_not_what_is_used),
        ON_A_TREE(limits_of_v2_are_read_as_well),
        ON_A_TREE(a_container_sees_its_own_group_as_the_top),
        ON_A_TREE(garbage_of_the_kernel_costs_a_figure_and_no_more),
        ON_A_TREE(who_listens_is_found_by_address_and_port),
        ON_A_TREE(a_servers_folder_is_where_its_database_is_open),
        ON_A_TREE(a_folders_size_is_found_in_small_steps),
        ON_A_TREE(this_very_process_is_found_and_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
