/* pgserver.h: a scratch PostgreSQL for tests: own temp folder, own Unix socket, no TCP.
 * Header-only, for unit and integration tests.
 *
 * PostgreSQL refuses to run as root: as root it runs as the user postgres (else nobody). The server
 * dies with the test, also when that crashes. */
#ifndef PGSERVER_H
#define PGSERVER_H

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <libpq-fe.h>
#include <pwd.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef PGSERVER_BIN
#define PGSERVER_BIN "/usr/lib/postgresql/15/bin"
#endif

struct pgserver {
    char dir[64];  /* the socket lies in it */
    char url[160]; /* superuser, database postgres */
    pid_t pid;     /* of the postmaster; 0 when it doesn't run */
};

static void pgserver_become(void)
{
    struct passwd *u = getpwnam("postgres");
    if (!u)
        u = getpwnam("nobody");
    if (geteuid() == 0 && (!u || setgroups(0, NULL) || setgid(u->pw_gid) || setuid(u->pw_uid)))
        _exit(126);
    prctl(PR_SET_PDEATHSIG, SIGQUIT);
}

/* Starts a program as that user, its output into dir/log. */
static pid_t pgserver_spawn(const struct pgserver *s, char *const argv[])
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    char path[128];
    pgserver_become();
    snprintf(path, sizeof path, "%s/log", s->dir);
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd < 0 || chdir(s->dir))
        _exit(125);
    dup2(fd, 1);
    dup2(fd, 2);
    signal(SIGPIPE, SIG_DFL);
    execv(argv[0], argv);
    _exit(127);
}

static double pgserver_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Runs the server in its folder and waits until it answers (at most 20 s). */
static bool pgserver_run(struct pgserver *s)
{
    char bin[] = PGSERVER_BIN "/postgres", data[96], sock[96];
    snprintf(data, sizeof data, "%s/data", s->dir);
    snprintf(sock, sizeof sock, "-k%s", s->dir);
    char *argv[] = {bin,
                    (char[]){"-D"},
                    data,
                    sock,
                    (char[]){"-h"},
                    (char[]){""},
                    (char[]){"-F"},
                    (char[]){"-N20"},
                    NULL};
    s->pid = pgserver_spawn(s, argv);
    double until = pgserver_now() + 20;
    while (s->pid > 0 && pgserver_now() < until) {
        if (PQping(s->url) == PQPING_OK)
            return true;
        if (waitpid(s->pid, NULL, WNOHANG) != 0)
            s->pid = 0;
        nanosleep(&(struct timespec){0, 20000000}, NULL);
    }
    return false;
}

/* SIGINT: orderly, sessions are ended with a message; SIGQUIT: as a crash. Waits for its end. */
static void pgserver_kill(struct pgserver *s, int sig)
{
    if (s->pid <= 0)
        return;
    kill(s->pid, sig);
    while (waitpid(s->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    s->pid = 0;
}

static void pgserver_stop(struct pgserver *s)
{
    pgserver_kill(s, SIGQUIT);
    if (!s->dir[0])
        return;
    pid_t pid = fork();
    if (pid == 0) {
        execl("/bin/rm", "rm", "-rf", "--", s->dir, (char *)NULL);
        _exit(127);
    }
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    s->dir[0] = 0;
}

/* Makes a cluster (user postgres, no passwords on the socket) and runs it. */
static bool pgserver_start(struct pgserver *s)
{
    char bin[] = PGSERVER_BIN "/initdb", data[96];
    int status = -1;
    memset(s, 0, sizeof *s);
    strcpy(s->dir, "/tmp/cxpg-XXXXXX");
    if (!mkdtemp(s->dir))
        return false;
    struct passwd *u = getpwnam("postgres");
    if (!u)
        u = getpwnam("nobody");
    if (geteuid() == 0 && (!u || chown(s->dir, u->pw_uid, u->pw_gid)))
        return false;
    snprintf(data, sizeof data, "%s/data", s->dir);
    snprintf(s->url, sizeof s->url, "postgresql://postgres@/postgres?host=%s", s->dir);
    char *argv[] = {bin,
                    (char[]){"-D"},
                    data,
                    (char[]){"-U"},
                    (char[]){"postgres"},
                    (char[]){"-A"},
                    (char[]){"trust"},
                    (char[]){"-N"},
                    (char[]){"-E"},
                    (char[]){"UTF8"},
                    (char[]){"--locale=C"},
                    NULL};
    pid_t pid = pgserver_spawn(s, argv);
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (pid > 0 && status == 0 && pgserver_run(s))
        return true;
    fprintf(stderr, "can't start PostgreSQL; see %s/log\n", s->dir);
    pgserver_kill(s, SIGQUIT);
    return false;
}

#endif
