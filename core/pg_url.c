/* pg_url.c: owns nothing but the texts of one URL.
 *
 * libpq would go through the hosts by itself, but only with blocking name look-ups and without a
 * time-out for each, so pg.c does it, with the targets read here. */
#include "pg_url.h"

#include <libpq-fe.h>
#include <stdlib.h>

static unsigned elements(const char *list)
{
    unsigned n = list ? 1 : 0;
    while (list && (list = strchr(list, ',')))
        n++, list++;
    return n;
}

/* An empty element: in a list, libpq would not let the one at hand stand for the whole of it. */
static bool holes(const char *list)
{
    return list && (*list == ',' || strstr(list, ",,") || list[strlen(list) - 1] == ',');
}

static const char *option(const struct pg_url *u, const char *keyword, const char *environment)
{
    for (const PQconninfoOption *o = u->options; o->keyword; o++)
        if (strcmp(o->keyword, keyword) == 0 && o->val && *o->val)
            return o->val;
    const char *e = environment ? getenv(environment) : NULL;
    return e && *e ? e : NULL;
}

/* host, hostaddr and port are lists in parallel. NULL, or what is wrong (static text). A password
 * with an unescaped @ or / is read as part of host, port or database by libpq, which would then
 * name it in its messages: refused here. */
static const char *read_targets(struct pg_url *u, bool uri)
{
    const char *host = option(u, "host", "PGHOST"), *addr = option(u, "hostaddr", "PGHOSTADDR");
    const char *port = option(u, "port", "PGPORT"), *db = option(u, "dbname", NULL);
    unsigned n = addr ? elements(addr) : host ? elements(host) : 1;
    if (n > PG_TARGETS_MAX)
        return "too many hosts";
    if ((addr && host && elements(host) != n) || (elements(port) > 1 && elements(port) != n))
        return "as many ports and addresses as hosts, please";
    char *hosts = u->lists[0] = host ? base_strdup(host) : NULL;
    char *addrs = u->lists[1] = addr ? base_strdup(addr) : NULL;
    char *ports = u->lists[2] = port ? base_strdup(port) : NULL;
    bool one_port = elements(port) < 2;
    if (n > 1 && (holes(host) || holes(addr) || holes(port)))
        return "an empty element in the list of hosts or ports";
    for (u->targets = 0; u->targets < n; u->targets++) {
        struct pg_target *t = &u->target[u->targets];
        t->host = strsep(&hosts, ",");
        t->addr = strsep(&addrs, ",");
        t->port = one_port ? ports : strsep(&ports, ",");
        if (t->host && t->host[0] != '/' && strchr(t->host + 1, '@'))
            return "the host holds an @ (in a password, write it as %40)";
        if (t->port && t->port[strspn(t->port, "0123456789")])
            return "the port is not a number (in a password, write / as %2F and @ as %40)";
    }
    if (uri && db && strchr(db, '@'))
        return "the database name holds an @ (in a password, write / as %2F and @ as %40)";
    return NULL;
}

bool pg_url_read(struct pg_url *u, const char *text, char **error)
{
    char *message = NULL;
    *u = (struct pg_url){.targets = 0};
    u->options = PQconninfoParse(text, &message);
    if (!u->options) {
        /* What libpq quotes may be a part of the password. */
        must(message); /* else out of memory */
        message[strcspn(message, "\":\n")] = 0;
        *error = base_printf("not a PostgreSQL URL: %s", message);
        PQfreemem(message);
        return false;
    }
    const char *why = read_targets(u, strncmp(text, "postgres", 8) == 0);
    if (why)
        *error = base_printf("not a usable PostgreSQL URL: %s", why);
    u->password = option(u, "password", "PGPASSWORD");
    return !why;
}

void pg_url_fini(struct pg_url *u)
{
    for (unsigned i = 0; i < COUNT_OF(u->lists); i++)
        free(u->lists[i]);
    PQconninfoFree(u->options);
}

/* libpq never puts the password into its messages; this makes sure of it. */
char *pg_url_mask(const struct pg_url *u, const char *message)
{
    char *s = base_strdup(message), *guess = strstr(s, "\n\t");
    size_t secret = u->password ? strlen(u->password) : 0;
    if (guess) /* libpq's, about what it means */
        *guess = 0;
    for (char *at = s; secret >= 4 && (at = strstr(at, u->password)); at += secret)
        memset(at, '*', secret);
    for (char *at = s; (at = strchr(at, '\n'));)
        *at = at[1] ? ' ' : 0;
    return s;
}
