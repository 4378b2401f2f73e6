/* main.c: the command line. */
#include "api.h"
#include "api_policy.h"
#include "api_records.h"
#include "api_slice.h"
#include "engine.h"
#include "kit.h"
#include "log.h"
#include "policy.h"
#include "role.h"
#include "stream.h"
#include "supervise.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

extern char **environ;

/* clang-format off */
static const char help[] =
    "chromux " CHROMUX_VERSION " - makes Chroma servers highly available\n"
    "\n"
    "  chromux run [--config FILE] [--set NAME=VALUE]...     run a balancer, and\n"
    "      with DATABASE_URL sync workers and the monitor (--role NAME: one alone)\n"
    "  chromux check [--config FILE] [--set NAME=VALUE]...   try settings, policies\n"
    "  chromux check --explain                               what every setting means\n"
    "  chromux test [FILE]...                                run specs of policies\n"
    "  chromux script FILE [ARG]...                          run a Lua program\n"
    "  chromux journal COMMAND [ARG]...                      look into the journal\n"
    "  chromux sync COMMAND [ARG]...                         prove servers equal\n"
    "  chromux advise                                        which servers need more\n"
    "  chromux notify COMMAND [ARG]...                       try, mute messages\n"
    "  chromux version\n"
    "\n"
    "Settings: the file (Lua, returns a table), then the environment, then --set.\n"
    "Needed: PRIMARY_URL=http://host:port, and REPLICA_URL for a second server.\n"
    "\n"
    "  PORT (8000)  LISTEN_ADDRESS (127.0.0.1)  POLICY_DIR (policies)  ACCESS_LOG (-)\n"
    "\n"
    "Signals: HUP reloads settings and policies, USR1 reopens the access log,\n"
    "TERM finishes what is under way and stops; a second TERM stops at once.\n"
    "\n"
    "Pages: /health  /status  /metrics\n";
/* clang-format on */

/* What `run` and `check` were called with: read again at each HUP. */
static struct settings_sources sources;
static enum role role; /* that --role named; the balancer */
static bool role_given;

/* ---- command line ---- */

static int usage(const char *what, const char *arg)
{
    fprintf(stderr, "chromux: %s%s%s; see chromux --help\n", what, arg ? " " : "", arg ? arg : "");
    return 2;
}

/* The value of the option at argv[*i] where it is this one, as NAME VALUE or NAME=VALUE; else NULL.
 */
static char *value_of(const char *name, int argc, char **argv, int *i)
{
    size_t n = strlen(name);
    if (strncmp(argv[*i], name, n) != 0)
        return NULL;
    if (argv[*i][n] == '=')
        return argv[*i] + n + 1;
    return argv[*i][n] || *i + 1 >= argc ? NULL : argv[++*i];
}

/* Reads --config, --set, --role and, where explain is not NULL, --explain. 0: fine. */
static int read_options(int argc, char **argv, bool *explain)
{
    sources.environment = environ;
    sources.sets = base_zalloc(sizeof *sources.sets * (size_t)(argc + 1));
    for (int i = 0; i < argc; i++) {
        const char *a = argv[i];
        char *v;
        if (explain && strcmp(a, "--explain") == 0) {
            *explain = true;
        } else if ((v = value_of("--role", argc, argv, &i)) != NULL) {
            if (role_given)
                return usage("only one role can be given:", v);
            if (!role_from(v, &role))
                return usage("--role: expected balancer, worker, coordinator or monitor, not", v);
            role_given = true;
        } else if ((v = value_of("--config", argc, argv, &i)) != NULL) {
            if (sources.file)
                return usage("only one file can be given:", v);
            sources.file = v;
        } else if ((v = value_of("--set", argc, argv, &i)) != NULL) {
            sources.sets[sources.set_count++] = v;
        } else if (strcmp(a, "--config") == 0 || strcmp(a, "--set") == 0 ||
                   strcmp(a, "--role") == 0) {
            return usage("a value must follow", a);
        } else {
            return usage("unknown option", a);
        }
    }
    return 0;
}

static void print_mistakes(struct buf *errors)
{
    fprintf(stderr, "%.*s", (int)buf_len(errors), buf_data(errors));
}

/* ---- reload ---- */

/* ---- run ---- */

static int run(int argc, char **argv)
{
    int bad = read_options(argc, argv, NULL);
    if (bad)
        return bad;
    struct buf errors;
    buf_init(&errors, 1u << 20);
    struct config *cfg = settings_load(&sources, &errors);
    int code = 2;
    if (cfg && !role_given && *cfg->database_url)
        code = supervise(&sources, &cfg);
    else if (cfg)
        code = role_run(role, false, &sources, &cfg);
    else
        print_mistakes(&errors);
    buf_fini(&errors);
    return code;
}

/* ---- the other commands ---- */

static int check(int argc, char **argv)
{
    bool explain = false;
    int bad = read_options(argc, argv, &explain);
    if (bad)
        return bad;
    struct buf out;
    buf_init(&out, 4u << 20);
    int code = 0;
    if (explain) {
        config_explain(&out);
        printf("%.*s", (int)buf_len(&out), buf_data(&out));
        buf_fini(&out);
        return 0;
    }
    struct config *c = settings_load(&sources, &out);
    bool fine = c && role_check(role, c, &out);
    char missing[POLICY_MISSING_MAX] = "";
    if (c && policy_check(c, &out, missing) && fine) {
        buf_clear(&out);
        config_print(c, &out);
        if (*missing)
            buf_printf(&out, "POLICY_DIR lacks %s: what is built in answers instead\n", missing);
        printf("%.*sfine: settings and policies can be used\n", (int)buf_len(&out), buf_data(&out));
    } else {
        print_mistakes(&out);
        code = 1;
    }
    if (c)
        config_free(c);
    policy_unload();
    buf_fini(&out);
    return code;
}

/* Commands that are modules of our own, called with what follows the command. */
static const struct {
    const char *command, *module;
} own_programs[] = {
    {"journal", "lb.journal_cli"},
    {"sync", "lb.sync_cli"},
    {"advise", "lb.advise_cli"},
    {"notify", "lb.notify_cli"},
};

static const char *own_program(const char *command)
{
    for (unsigned i = 0; i < COUNT_OF(own_programs); i++)
        if (strcmp(own_programs[i].command, command) == 0)
            return own_programs[i].module;
    return NULL;
}

enum program { PROGRAM_FILE, PROGRAM_SPECS, PROGRAM_OWN };

/* Our own runtime around a Lua program. */
static int with_runtime(int argc, char **argv, enum program which)
{
    struct buf errors;
    int code = 1;
    buf_init(&errors, 1u << 20);
    const char *url = getenv("DATABASE_URL");
    struct ev_loop *loop = ev_default_loop(EVFLAG_AUTO);
    stream_start(loop);
    if (which == PROGRAM_OWN)
        log_set_level(LOG_ERROR); /* it says itself what failed */
    if (!api_start(loop, url ? url : "", &errors)) {
        print_mistakes(&errors);
    } else {
        api_slice_open(api_vm());
        api_records_open(api_vm());
        api_policy_open(api_vm());
        if (which == PROGRAM_SPECS)
            code = kit_main(api_vm(), argc, argv);
        else if (which == PROGRAM_OWN ? !api_run_module(own_program(argv[0]), argc, argv, &code)
                                      : !api_run_file(argv[0], argc, argv, &code))
            code = code ? code : 1;
    }
    api_stop();
    buf_fini(&errors);
    return code;
}

/* `notify test`: with the settings and the policies that `run` has. Its arguments are what is no
 * --config or --set. */
static int notify_test(int argc, char **argv)
{
    char **options = base_zalloc(sizeof *options * (size_t)(argc + 1));
    int count = 0, kept = 0, code;
    for (int i = 0; i < argc; i++) {
        bool option = strncmp(argv[i], "--", 2) == 0;
        bool pair = option && !strchr(argv[i], '=') && i + 1 < argc;
        if (option)
            options[count++] = argv[i];
        else
            argv[kept++] = argv[i];
        if (pair)
            options[count++] = argv[++i];
    }
    code = read_options(count, options, NULL);
    free(options);
    if (code)
        return code;
    struct buf errors;
    buf_init(&errors, 1u << 20);
    struct config *c = settings_load(&sources, &errors);
    struct ev_loop *loop = ev_default_loop(EVFLAG_AUTO);
    stream_start(loop);
    log_set_level(LOG_ERROR);
    code = 1;
    if (c && policy_load(c, &errors) && api_start(loop, "", &errors)) {
        api_policy_open(api_vm());
        engine_give_settings(api_vm(), c);
        if (!api_run_module("lb.notify_cli", kept, argv, &code))
            code = code ? code : 1;
    } else {
        print_mistakes(&errors);
    }
    api_stop();
    policy_unload();
    if (c)
        config_free(c);
    buf_fini(&errors);
    return code;
}

int main(int argc, char **argv)
{
    const char *command = argc > 1 ? argv[1] : "--help";
    int code;
    if (strcmp(command, "run") == 0) {
        code = run(argc - 2, argv + 2);
    } else if (strcmp(command, "check") == 0) {
        code = check(argc - 2, argv + 2);
    } else if (strcmp(command, "test") == 0) {
        code = with_runtime(argc - 2, argv + 2, PROGRAM_SPECS);
    } else if (strcmp(command, "script") == 0) {
        code = argc > 2 ? with_runtime(argc - 2, argv + 2, PROGRAM_FILE)
                        : usage("script: a FILE must follow", NULL);
    } else if (strcmp(command, "notify") == 0 && argc > 2 && strcmp(argv[2], "test") == 0) {
        code = notify_test(argc - 1, argv + 1);
    } else if (own_program(command)) {
        code = with_runtime(argc - 1, argv + 1, PROGRAM_OWN);
    } else if (strcmp(command, "version") == 0 || strcmp(command, "--version") == 0) {
        puts("chromux " CHROMUX_VERSION);
        code = 0;
    } else if (strcmp(command, "--help") == 0 || strcmp(command, "-h") == 0 ||
               strcmp(command, "help") == 0) {
        fputs(help, stdout);
        code = argc > 1 ? 0 : 2;
    } else {
        code = usage("unknown command", command);
    }
    free(sources.sets);
    fflush(stdout);
    /* As a shell expects: the caller sees that the signal ended us. */
    if (role_stopped_by() == SIGINT || supervise_stopped_by() == SIGINT) {
        signal(SIGINT, SIG_DFL);
        raise(SIGINT);
    }
    return code;
}
