#include "fixture.h"

#include <stdio.h>
#include <string.h>

enum { SETTINGS_MAX = 48 };

/* Adds a default unless a setting of that name was given. */
static void unless_given(const char **list, unsigned given, unsigned *n, const char *setting)
{
    size_t name = strcspn(setting, "=") + 1;
    for (unsigned i = 0; i < given; i++)
        if (strncmp(list[i], setting, name) == 0)
            return;
    list[(*n)++] = setting;
}

struct chromux *in_front_of(struct peer *a, struct peer *b, ...)
{
    const char *list[SETTINGS_MAX] = {0};
    unsigned n = 0;
    va_list args;
    va_start(args, b);
    while (n < SETTINGS_MAX - 8 && (list[n] = va_arg(args, const char *)) != NULL)
        n++;
    va_end(args);
    unsigned given = n;
    list[n++] = keepf("PRIMARY_URL=%s", peer_url(a));
    if (b)
        list[n++] = keepf("REPLICA_URL=%s", peer_url(b));
    unless_given(list, given, &n, "UNREPLICATED_READS=any");
    unless_given(list, given, &n, "CHECK_INTERVAL=0.2");
    unless_given(list, given, &n, "PROBE_TIMEOUT=5");
    struct chromux *x = chromux_start_list(list);
    chromux_wait_healthy(x, b ? 2 : 1);
    return x;
}

char *own_policies(void)
{
    char *folder = keepf("%s/policies", temp_folder());
    const char *const copy[] = {"cp", "-r", "policies", folder, NULL};
    check_int(run_program(copy, NULL, 10).status, 0);
    return folder;
}

void edit_file(const char *path, const char *from, const char *to)
{
    char *text = read_file(path), *at = strstr(text, from);
    check(at != NULL);
    write_file(path, keepf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from)));
}

bool conn_answer(struct conn *c, const char *body)
{
    return conn_send(c, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
}
