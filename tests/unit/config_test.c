/* config_test.c: what settings mean, and what is said of those that mean nothing. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define FILE_SOURCE "config/x.lua"

static struct config_raws raws;
static struct buf errors;
static struct config *built;

static int start(void **state)
{
    raws = (struct config_raws){0};
    buf_init(&errors, 1u << 20);
    return 0;
}

static int stop(void **state)
{
    config_free(built);
    built = NULL;
    config_raws_fini(&raws);
    buf_fini(&errors);
    return 0;
}

static void text(const char *name, const char *value)
{
    config_raws_add(&raws, name, value, CONFIG_TEXT, FILE_SOURCE);
}

static void number(const char *name, const char *value)
{
    config_raws_add(&raws, name, value, CONFIG_NUMBER, FILE_SOURCE);
}

static void env(const char *name, const char *value)
{
    config_raws_add(&raws, name, value, CONFIG_TEXT, "environment");
}

static void set(const char *name, const char *value)
{
    config_raws_add(&raws, name, value, CONFIG_TEXT, "--set");
}

static const char *said(void)
{
    static char copy[1u << 16];
    snprintf(copy, sizeof copy, "%.*s", (int)buf_len(&errors), buf_data(&errors));
    return copy;
}

static const struct config *good(void)
{
    config_free(built);
    built = config_build(&raws, &errors);
    assert_string_equal(said(), "");
    assert_non_null(built);
    return built;
}

/* The check must refuse with exactly these lines; starts over with no raws. */
static void refused(const char *lines)
{
    config_free(built);
    built = config_build(&raws, &errors);
    assert_string_equal(said(), lines);
    assert_null(built);
    buf_clear(&errors);
    config_raws_fini(&raws);
}

static void with_primary(void)
{
    env("PRIMARY_URL", "http://127.0.0.1:8001");
}

/* ---- values ---------------------------------------------------------------------------------- */

static void defaults_hold_where_nothing_is_said(void **state)
{
    with_primary();
    const struct config *c = good();
    assert_int_equal(c->port, 8000);
    assert_string_equal(c->listen_address, "127.0.0.1");
    assert_true(c->check_interval == 1);
    assert_true(c->request_timeout == 30);
    assert_int_equal(c->max_head, 32768);
    assert_int_equal(c->max_body, 256l << 20);
    assert_false(c->sync_distributed);
    assert_string_equal(c->database_url, "");
    assert_string_equal(c->admin_port, "");
}

static void later_sources_override_earlier_ones(void **state)
{
    with_primary();
    number("PORT", "1");
    env("PORT", "2");
    assert_int_equal(good()->port, 2);
    set("PORT", "3");
    assert_int_equal(good()->port, 3);
    set("PORT", "4");
    assert_int_equal(good()->port, 4);
}

static void seconds_and_bytes_carry_units(void **state)
{
    static const struct {
        const char *said;
        double seconds;
    } seconds[] = {{"5", 5}, {"0.5", 0.5}, {"5s", 5}, {"200ms", 0.2}, {"3600", 3600}};
    static const struct {
        const char *said;
        long bytes;
    } bytes[] = {{"4096", 4096}, {"4k", 4096}, {"4K", 4096}, {"1m", 1048576}};
    with_primary();
    for (unsigned i = 0; i < COUNT_OF(seconds); i++) {
        set("CHECK_INTERVAL", seconds[i].said);
        assert_true(good()->check_interval == seconds[i].seconds);
    }
    for (unsigned i = 0; i < COUNT_OF(bytes); i++) {
        set("MAX_HEAD_BYTES", bytes[i].said);
        assert_int_equal(good()->max_head, bytes[i].bytes);
    }
    set("MAX_BODY_BYTES", "1g");
    assert_int_equal(good()->max_body, 1l << 30);
}

static void nonsense_is_no_number(void **state)
{
    static const char *const bad[] = {"",   "fast", "-1",  "1e3",  "0x5", " 5", "5 ",   "5m",
                                      ".5", "nan",  "inf", "1..2", "5ss", "+5", "0.01", "3601"};
    for (unsigned i = 0; i < COUNT_OF(bad); i++) {
        char line[200];
        with_primary();
        set("CHECK_INTERVAL", bad[i]);
        snprintf(line, sizeof line,
                 "CHECK_INTERVAL = \"%s\" (--set): expected seconds between 0.05 and 3600\n",
                 bad[i]);
        refused(line);
    }
    static const char *const bad_bytes[] = {
        "", "k", "1kb", "1t", "-1", "32 k", "1.5m", "99999999999999999999", "2m"};
    for (unsigned i = 0; i < COUNT_OF(bad_bytes); i++) {
        char line[200];
        with_primary();
        set("MAX_URI_BYTES", bad_bytes[i]);
        snprintf(line, sizeof line,
                 "MAX_URI_BYTES = \"%s\" (--set): expected bytes between 256 and 1048576\n",
                 bad_bytes[i]);
        refused(line);
    }
}

static void booleans_have_a_few_words(void **state)
{
    static const char *const yes[] = {"true", "1", "yes", "on"};
    static const char *const no[] = {"false", "0", "no", "off"};
    with_primary();
    for (unsigned i = 0; i < 4; i++) {
        set("SYNC_DISTRIBUTED", yes[i]);
        assert_true(good()->sync_distributed);
        set("SYNC_DISTRIBUTED", no[i]);
        assert_false(good()->sync_distributed);
    }
    set("SYNC_DISTRIBUTED", "True");
    assert_true(good()->sync_distributed);
    set("SYNC_DISTRIBUTED", "maybe");
    refused("SYNC_DISTRIBUTED = \"maybe\" (--set): expected true or false\n");
}

static void whole_numbers_keep_their_range(void **state)
{
    with_primary();
    env("PORT", "65536");
    env("FAILURE_THRESHOLD", "0");
    env("MAX_TRIES", "2.5");
    refused("PORT = \"65536\" (environment): expected a whole number between 0 and 65535\n"
            "FAILURE_THRESHOLD = \"0\" (environment): expected a whole number between 1 and 1000\n"
            "MAX_TRIES = \"2.5\" (environment): expected a whole number between 1 and 100\n");
    with_primary();
    set("PORT", "0");
    set("FAILURE_THRESHOLD", "1000");
    assert_int_equal(good()->port, 0);
    assert_int_equal(built->failure_threshold, 1000);
}

static void the_file_is_strict_about_types(void **state)
{
    with_primary();
    text("PORT", "8000");
    number("POLICY_DIR", "5");
    config_raws_add(&raws, "MAX_TRIES", "true", CONFIG_BOOLEAN, FILE_SOURCE);
    text("SYNC_DISTRIBUTED", "true");
    number("DATABASE_URL", "5");
    refused("PORT = \"8000\" (config/x.lua): expected a whole number between 0 and 65535, "
            "without quotes\n"
            "POLICY_DIR = 5 (config/x.lua): expected text that is not empty\n"
            "MAX_TRIES = true (config/x.lua): expected a whole number between 1 and 100\n"
            "SYNC_DISTRIBUTED = \"true\" (config/x.lua): expected true or false\n"
            "DATABASE_URL = *** (config/x.lua): expected text\n");
    with_primary();
    number("PORT", "8003");
    number("admin_port", "8002");
    number("CHECK_INTERVAL", "0.25");
    text("TRY_TIMEOUT", "300ms");
    text("MAX_HEAD_BYTES", "64k");
    config_raws_add(&raws, "SYNC_DISTRIBUTED", "true", CONFIG_BOOLEAN, FILE_SOURCE);
    const struct config *c = good();
    assert_int_equal(c->port, 8003);
    assert_string_equal(c->admin_port, "8002");
    assert_true(c->check_interval == 0.25 && c->try_timeout == 0.3);
    assert_int_equal(c->max_head, 65536);
    assert_true(c->sync_distributed);
}

static void closed_sets_and_shapes_are_closed(void **state)
{
    static const char *const hooks[] = {"https://hooks.example/x",
                                        "http://127.0.0.1:9/x",
                                        "http://localhost/x",
                                        "http://[::1]:80",
                                        "https://user:pw@hooks.example/x",
                                        ""};
    static const char *const elsewhere[] = {"http://127.0.0.1.example/",
                                            "http://127.0.0.1@x.example/",
                                            "http://localhost.example/",
                                            "http://127.0.0.1:80@x.example/",
                                            "http://localhost?x.example",
                                            "ftp://127.0.0.1/x",
                                            "https:///x"};
    for (unsigned i = 0; i < COUNT_OF(elsewhere); i++) {
        with_primary();
        set("SLACK_WEBHOOK_URL", elsewhere[i]);
        refused(
            "SLACK_WEBHOOK_URL = *** (--set): expected https://..., or http:// to this machine\n");
    }
    with_primary();
    set("UNREPLICATED_READS", "all");
    set("LOG_FORMAT", "JSON");
    set("LOG_LEVEL", "");
    set("ADMIN_PORT", "65536");
    set("SLACK_WEBHOOK_URL", "http://127.0.0.1.example/secret");
    set("WEBHOOK_URL", "http://hooks.example/secret");
    set("PUBLIC_URL", "ftp://chromux.example");
    set("LISTEN_ADDRESS", "");
    set("POLICY_DIR", "a\nb");
    refused("UNREPLICATED_READS = \"all\" (--set): expected primary or any\n"
            "LOG_FORMAT = \"JSON\" (--set): expected kv or json\n"
            "LOG_LEVEL = \"\" (--set): expected debug, info, warn or error\n"
            "ADMIN_PORT = \"65536\" (--set): expected a port between 0 and 65535, or nothing\n"
            "SLACK_WEBHOOK_URL = *** (--set): expected https://..., or http:// to this machine\n"
            "WEBHOOK_URL = *** (--set): expected https://..., or http:// to this machine\n"
            "PUBLIC_URL = \"ftp://chromux.example\" (--set): expected http(s)://..., or nothing\n"
            "LISTEN_ADDRESS = \"\" (--set): expected an IPv4 or IPv6 address\n"
            "POLICY_DIR = \"a?b\" (--set): expected text that is not empty\n");
    with_primary();
    for (unsigned i = 0; i < COUNT_OF(hooks); i++) {
        set("SLACK_WEBHOOK_URL", hooks[i]);
        set("WEBHOOK_URL", hooks[i]);
        assert_string_equal(good()->slack_webhook_url, hooks[i]);
        assert_string_equal(good()->webhook_url, hooks[i]);
    }
    set("UNREPLICATED_READS", "any");
    set("ADMIN_PORT", "65535");
    set("PUBLIC_URL", "https://chromux.example/lb");
    assert_string_equal(good()->public_url, "https://chromux.example/lb");
    assert_string_equal(good()->unreplicated_reads, "any");
    set("DEPLOYMENT_NAME", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
    refused("DEPLOYMENT_NAME = \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\" "
            "(--set): "
            "expected 1 to 60 bytes\n");
}

/* ---- names ----------------------------------------------------------------------------------- */

static void unknown_names_get_the_nearest_one(void **state)
{
    with_primary();
    number("CHEK_INTERVAL", "1");
    set("port", "1");
    env("CHROMUX_MAX_TRYES", "1");
    number("Port", "1");
    set("CHROMUX_PORT", "1");
    number("wholly_unlike", "1");
    refused("unknown setting CHEK_INTERVAL (config/x.lua): did you mean CHECK_INTERVAL?\n"
            "unknown setting port (--set): did you mean PORT?\n"
            "unknown setting CHROMUX_MAX_TRYES (environment): did you mean CHROMUX_MAX_TRIES?\n"
            "unknown setting Port (config/x.lua): did you mean PORT?\n"
            "unknown setting CHROMUX_PORT (--set): `chromux check --explain` lists all\n"
            "unknown setting wholly_unlike (config/x.lua): `chromux check --explain` lists all\n");
}

static void the_environment_gives_documented_and_prefixed_names(void **state)
{
#define WORD(s) ((char[]){s})
    char *environment[] = {WORD("HOME=/root"),
                           WORD("PRIMARY_URL=http://a:1"),
                           WORD("CHROMUX_PORT=7000"),
                           WORD("CHECK_INTERVAL=2s"),
                           WORD("MAX_TRIES="),
                           WORD("CHROMUX_NONSENSE="),
                           WORD("PORTS=1"),
                           WORD("novalue"),
                           NULL};
    config_raws_add_environment(&raws, environment);
    assert_int_equal(raws.n, 3);
    assert_int_equal(good()->port, 7000);
    assert_true(built->check_interval == 2);
    char *more[] = {WORD("CHROMUX_NONSENSE=1"), NULL};
    config_raws_add_environment(&raws, more);
    refused(
        "unknown setting CHROMUX_NONSENSE (environment): `chromux check --explain` lists all\n");
}

static void one_setting_under_two_names_must_agree(void **state)
{
    with_primary();
    env("PORT", "1");
    env("CHROMUX_PORT", "1");
    assert_int_equal(good()->port, 1);
    env("MAX_TRIES", "4");
    env("CHROMUX_MAX_TRIES", "5");
    env("DATABASE_URL", "one-secret");
    env("CHROMUX_DATABASE_URL", "two-secret");
    refused("CHROMUX_MAX_TRIES = \"5\" (environment): expected the same value as MAX_TRIES gives\n"
            "CHROMUX_DATABASE_URL = *** (environment): expected the same value as DATABASE_URL "
            "gives\n");
    with_primary();
    number("port", "1");
    number("PORT", "2");
    refused("PORT = 2 (config/x.lua): expected the same value as port gives\n");
}

/* ---- instances ------------------------------------------------------------------------------- */

static void the_two_urls_are_primary_and_replica(void **state)
{
    env("REPLICA_URL", "http://b.example:8002/");
    env("PRIMARY_URL", "http://a.example");
    const struct config *c = good();
    assert_int_equal(c->instance_count, 2);
    assert_string_equal(c->instance[0].name, "primary");
    assert_string_equal(c->instance[0].url, "http://a.example");
    assert_string_equal(c->instance[0].host, "a.example");
    assert_int_equal(c->instance[0].port, 8000);
    assert_int_equal(c->instance[0].priority, 100);
    assert_int_equal(c->instance[0].weight, 1);
    assert_int_equal(c->instance[0].maxconn, 256);
    assert_int_equal(c->instance[0].role, CONFIG_PRIMARY);
    assert_string_equal(c->instance[1].name, "replica");
    assert_string_equal(c->instance[1].host, "b.example");
    assert_int_equal(c->instance[1].port, 8002);
    assert_int_equal(c->instance[1].priority, 80);
    assert_int_equal(c->instance[1].role, CONFIG_REPLICA);
}

static void a_list_of_instances_is_sorted_by_priority(void **state)
{
    set("MAXCONN", "9");
    set("CHROMA_INSTANCES", " a = http://a:1 , weight=2 ; b=http://b:1,priority=200,maxconn = 5;"
                            "c=http://[2001:DB8::1]:1,role=primary;");
    const struct config *c = good();
    assert_int_equal(c->instance_count, 3);
    assert_string_equal(c->instance[0].name, "b");
    assert_string_equal(c->instance[1].name, "a");
    assert_string_equal(c->instance[2].name, "c");
    assert_int_equal(c->instance[0].maxconn, 5);
    assert_int_equal(c->instance[1].maxconn, 9);
    assert_int_equal(c->instance[1].weight, 2);
    assert_string_equal(c->instance[2].host, "2001:db8::1");
    assert_int_equal(c->instance[0].role, CONFIG_REPLICA);
    assert_int_equal(c->instance[2].role, CONFIG_PRIMARY);
}

static void rows_of_the_file_are_instances(void **state)
{
    text("instances[1].url", "http://a:1");
    text("instances[1].name", "a");
    text("instances[2].name", "b");
    text("instances[2].url", "http://b:1");
    number("instances[2].priority", "300");
    number("instances[2].weight", "7");
    const struct config *c = good();
    assert_int_equal(c->instance_count, 2);
    assert_string_equal(c->instance[0].name, "b");
    assert_int_equal(c->instance[0].weight, 7);
    assert_int_equal(c->instance[0].role, CONFIG_PRIMARY);
    assert_int_equal(c->instance[1].role, CONFIG_REPLICA);
}

static void bad_rows_are_told_all_at_once(void **state)
{
    text("instances[1].name", "a b");
    text("instances[1].url", "http://a:1");
    text("instances[2].name", "b");
    number("instances[2].wieght", "7");
    text("instances[3].url", "http://c:1");
    text("instances[3].weight", "7");
    number("instances[3].maxconn", "0");
    text("instances[3].role", "boss");
    set("instances[1].weight", "2");
    number("instances", "1");
    refused("unknown setting instances[1].weight (--set): `chromux check --explain` lists all\n"
            "unknown setting instances (config/x.lua): `chromux check --explain` lists all\n"
            "instances[1].name = \"a b\" (config/x.lua): expected 1 to 63 of A-Z a-z 0-9 . _ -\n"
            "unknown field instances[2].wieght (config/x.lua): expected name, url, priority, "
            "weight, maxconn or role\n"
            "instances[3].weight = \"7\" (config/x.lua): expected a whole number between 1 and "
            "1000\n"
            "instances[3].maxconn = 0 (config/x.lua): expected a whole number between 1 and "
            "100000\n"
            "instances[3].role = \"boss\" (config/x.lua): expected primary or replica\n"
            "instances[2] (config/x.lua): expected a url\n"
            "instances[3] (config/x.lua): expected a name\n");
}

static void urls_are_plain_http_to_a_host(void **state)
{
    static const struct {
        const char *url, *wrong;
    } bad[] = {
        {"https://a:1", "TLS to instances is not supported yet: expected http://host:port"},
        {"HTTPS://a", "TLS to instances is not supported yet: expected http://host:port"},
        {"a:8000", "expected http://host:port"},
        {"ftp://a", "expected http://host:port"},
        {"http://", "expected http://host:port"},
        {"http://:80", "expected http://host:port"},
        {"http://a:", "expected http://host:port"},
        {"http://a b", "expected http://host:port"},
        {"http://a/path", "expected http://host:port without a path or query"},
        {"http://a:1//", "expected http://host:port without a path or query"},
        {"http://a?x=1", "expected http://host:port without a path or query"},
        {"http://a#x", "expected http://host:port without a path or query"},
        {"http://a:0", "expected a port between 1 and 65535"},
        {"http://a:65536", "expected a port between 1 and 65535"},
        {"http://a:655350000000", "expected a port between 1 and 65535"},
        {"http://::1:8000", "expected http://host:port, an IPv6 address in [brackets]"},
        {"http://[::1]:0", "expected a port between 1 and 65535"},
        {"http://[::zz]", "expected http://host:port"},
        {"http://[1:2]", "expected an IPv6 address in the brackets"},
        {"http://[::1", "expected http://host:port"},
    };
    for (unsigned i = 0; i < COUNT_OF(bad); i++) {
        char line[300];
        env("PRIMARY_URL", bad[i].url);
        snprintf(line, sizeof line, "PRIMARY_URL = \"%s\" (environment): %s\n", bad[i].url,
                 bad[i].wrong);
        refused(line);
    }
    static const struct {
        const char *url, *host;
        int port;
    } fine[] = {{"http://127.0.0.1:1", "127.0.0.1", 1},
                {"http://a-b.example:65535/", "a-b.example", 65535},
                {"http://[::1]", "::1", 8000},
                {"http://[0:0::1]:80/", "::1", 80}};
    for (unsigned i = 0; i < COUNT_OF(fine); i++) {
        env("PRIMARY_URL", fine[i].url);
        assert_string_equal(good()->instance[0].host, fine[i].host);
        assert_int_equal(built->instance[0].port, fine[i].port);
        assert_string_equal(built->instance[0].url, fine[i].url);
    }
}

static void impossible_combinations_are_refused(void **state)
{
    refused("no instances: expected PRIMARY_URL, CHROMA_INSTANCES or instances in the config "
            "file\n");
    text("CHROMA_INSTANCES", "a=http://a:1");
    with_primary();
    refused("PRIMARY_URL = \"http://127.0.0.1:8001\" (environment): expected either this or "
            "CHROMA_INSTANCES\n");
    text("instances[1].name", "a");
    text("instances[1].url", "http://a:1");
    env("CHROMA_INSTANCES", "a=http://a:1");
    with_primary();
    refused("PRIMARY_URL = \"http://127.0.0.1:8001\" (environment): expected either this or "
            "instances in the config file\n"
            "CHROMA_INSTANCES = \"a=http://a:1\" (environment): expected either this or instances "
            "in the config file\n");
    env("REPLICA_URL", "http://b:1");
    refused("REPLICA_URL = \"http://b:1\" (environment): expected PRIMARY_URL beside it\n");
    with_primary();
    env("SYNC_COORDINATOR", "true");
    refused("SYNC_COORDINATOR = \"true\" (environment): expected SYNC_DISTRIBUTED=true beside "
            "it\n");
    with_primary();
    env("TRY_TIMEOUT", "6");
    env("REQUEST_TIMEOUT", "5");
    refused("TRY_TIMEOUT = \"6\" (environment): expected at most REQUEST_TIMEOUT, which is 5\n");
}

static void a_try_fits_into_its_request(void **state)
{
    with_primary();
    env("REQUEST_TIMEOUT", "2");
    assert_true(good()->try_timeout == 2);
    config_raws_fini(&raws);
    with_primary();
    env("TRY_TIMEOUT", "60");
    assert_true(good()->try_timeout == 30);
}

static void connecting_fits_into_its_request(void **state)
{
    with_primary();
    env("REQUEST_TIMEOUT", "0.5");
    assert_true(good()->connect_timeout == 0.5);
    set("CONNECT_TIMEOUT", "2");
    refused("CONNECT_TIMEOUT = \"2\" (--set): expected at most REQUEST_TIMEOUT, which is 0.5\n");
    with_primary();
    set("CONNECT_TIMEOUT", "600");
    assert_true(good()->connect_timeout == 30);
}

static void a_target_fits_into_its_head(void **state)
{
    with_primary();
    env("MAX_HEAD_BYTES", "4k");
    assert_int_equal(good()->max_uri, 4096);
    set("MAX_URI_BYTES", "5k");
    refused("MAX_URI_BYTES = \"5k\" (--set): expected at most MAX_HEAD_BYTES, which is 4096\n");
    with_primary();
    number("max_uri_bytes", "32769");
    refused("max_uri_bytes = 32769 (config/x.lua): expected at most MAX_HEAD_BYTES, which is "
            "32768\n");
    with_primary();
    set("MAX_URI_BYTES", "32k");
    assert_int_equal(good()->max_uri, 32768);
}

static void the_admin_port_is_another(void **state)
{
    with_primary();
    set("ADMIN_PORT", "8000");
    refused("ADMIN_PORT = \"8000\" (--set): expected another port than PORT, which is 8000\n");
    with_primary();
    set("PORT", "80");
    env("ADMIN_PORT", "0080");
    refused("ADMIN_PORT = \"0080\" (environment): expected another port than PORT, which is 80\n");
    with_primary();
    set("PORT", "fast");
    set("ADMIN_PORT", "8000");
    refused("PORT = \"fast\" (--set): expected a whole number between 0 and 65535\n");
    with_primary();
    set("PORT", "0");
    set("ADMIN_PORT", "0");
    assert_int_equal(good()->port, 0);
}

static void addresses_are_no_names(void **state)
{
    with_primary();
    set("LISTEN_ADDRESS", "localhost");
    number("DNS_SERVERS", "1");
    env("DNS_SERVERS", "127.0.0.1,::1:53x");
    refused("LISTEN_ADDRESS = \"localhost\" (--set): expected an IPv4 or IPv6 address\n"
            "DNS_SERVERS = 1 (config/x.lua): expected address[:port],... ([IPv6]:port), or "
            "nothing\n"
            "DNS_SERVERS = \"127.0.0.1,::1:53x\" (environment): expected address[:port],... "
            "([IPv6]:port), or nothing\n");
    with_primary();
    set("LISTEN_ADDRESS", "::1");
    set("DNS_SERVERS", "127.0.0.1:5353,[::1]:53");
    assert_string_equal(good()->listen_address, "::1");
    assert_string_equal(built->dns_servers, "127.0.0.1:5353,[::1]:53");
    set("DNS_SERVERS", "");
    assert_string_equal(good()->dns_servers, "");
}

static void chromux_is_no_instance_of_its_own(void **state)
{
    env("PRIMARY_URL", "http://LocalHost");
    refused("PRIMARY_URL = \"http://LocalHost\" (environment): expected a Chroma server, not "
            "chromux itself (LISTEN_ADDRESS 127.0.0.1, PORT 8000)\n");
    set("LISTEN_ADDRESS", "::");
    set("PORT", "9");
    env("CHROMA_INSTANCES", "a=http://10.0.0.1:9;b=http://127.0.0.1:8;c=http://127.5.0.1:9");
    refused("CHROMA_INSTANCES[3].url = \"http://127.5.0.1:9\" (environment): expected a Chroma "
            "server, not chromux itself (LISTEN_ADDRESS ::, PORT 9)\n");
    text("instances[1].name", "a");
    text("instances[1].url", "http://10.0.0.1:9");
    set("LISTEN_ADDRESS", "10.0.0.1");
    set("PORT", "9");
    refused(
        "instances[1].url = \"http://10.0.0.1:9\" (config/x.lua): expected a Chroma server, not "
        "chromux itself (LISTEN_ADDRESS 10.0.0.1, PORT 9)\n");
    env("PRIMARY_URL", "http://127.0.0.1:8000");
    set("PORT", "99999");
    refused("PORT = \"99999\" (--set): expected a whole number between 0 and 65535\n");
    env("PRIMARY_URL", "http://127.0.0.1:8000");
    set("PORT", "0");
    assert_int_equal(good()->instance[0].port, 8000);
    set("PORT", "8000");
    set("LISTEN_ADDRESS", "127.0.0.2");
    assert_int_equal(good()->instance[0].port, 8000);
}

static void an_override_ends_a_conflict(void **state)
{
    text("CHROMA_INSTANCES", "a=http://a:1");
    with_primary();
    set("PRIMARY_URL", "");
    assert_string_equal(good()->instance[0].name, "a");
}

static void instances_must_differ_and_have_one_primary(void **state)
{
    env("CHROMA_INSTANCES", "a=http://a:1;a=http://A:1");
    refused("CHROMA_INSTANCES[2] (environment): expected a name of its own, not another a\n"
            "CHROMA_INSTANCES[2] (environment): expected an address of its own, not that of a\n");
    env("CHROMA_INSTANCES", "a=http://[::1]:1;b=http://[0::1]:1");
    refused("CHROMA_INSTANCES[2] (environment): expected an address of its own, not that of a\n");
    env("CHROMA_INSTANCES", "a=http://a:1,role=primary;b=http://b:1,role=primary");
    refused("CHROMA_INSTANCES[2] (environment): expected one instance with role primary, not "
            "two\n");
    env("CHROMA_INSTANCES", "a=http://a:1;b=http://a:2;c=http://b:1");
    assert_int_equal(good()->instance_count, 3);
    env("CHROMA_INSTANCES", "a=http://a:1,role=replica");
    refused("CHROMA_INSTANCES[1] (environment): expected one instance that is not a replica\n");
    env("CHROMA_INSTANCES", "a=http://a:1,role=replica,priority=9;b=http://b:1,priority=1");
    assert_int_equal(good()->instance[1].role, CONFIG_PRIMARY);
    assert_string_equal(built->instance[1].name, "b");
}

static void broken_lists_are_told(void **state)
{
    env("CHROMA_INSTANCES", "http://a:1");
    refused(
        "CHROMA_INSTANCES[1] = \"http://a:1\" (environment): expected name=url[,key=value...]\n");
    env("CHROMA_INSTANCES", "a=http://a:1,weight;b=http://b:1,url=http://c:1;c=x,speed=9,weight=w");
    refused("CHROMA_INSTANCES[1] = \"weight\" (environment): expected name=url[,key=value...]\n"
            "CHROMA_INSTANCES[2] = \"url\" (environment): expected "
            "name=url[,key=value...]\n"
            "CHROMA_INSTANCES[3].url = \"x\" (environment): expected http://host:port\n"
            "unknown field CHROMA_INSTANCES[3].speed (environment): expected name, url, priority, "
            "weight, maxconn or role\n"
            "CHROMA_INSTANCES[3].weight = w (environment): expected a whole number between 1 and "
            "1000\n");
    env("CHROMA_INSTANCES", ";;,;");
    refused("CHROMA_INSTANCES[3] = \"\" (environment): expected name=url[,key=value...]\n");
}

static void sixty_four_instances_and_no_more(void **state)
{
    for (int i = 1; i <= CONFIG_INSTANCES_MAX + 2; i++) {
        char name[40], value[40];
        snprintf(name, sizeof name, "instances[%d].name", i);
        snprintf(value, sizeof value, "n%d", i);
        text(name, value);
        snprintf(name, sizeof name, "instances[%d].url", i);
        snprintf(value, sizeof value, "http://n%d:1", i);
        text(name, value);
        if (i == CONFIG_INSTANCES_MAX)
            assert_int_equal(good()->instance_count, CONFIG_INSTANCES_MAX);
    }
    refused("instances[65] (config/x.lua): expected at most 64 instances\n");
}

/* ---- secrets, bounds, pages ------------------------------------------------------------------ */

static void no_error_repeats_a_secret(void **state)
{
    env("PRIMARY_URL", "http://user:hunter2@a:1");
    env("SLACK_WEBHOOK_URL", "hunter2");
    env("WEBHOOK_URL", "https://hooks.example/hunter2\nx");
    env("REPLICA_URL", "https://hunter2@b");
    set("DATABASE_URL", "hunter2\n");
    set("CHROMUX_DATABSE_URL", "hunter2");
    assert_null(config_build(&raws, &errors));
    assert_null(strstr(said(), "hunter2"));
    assert_non_null(strstr(said(), "PRIMARY_URL = \"http://***\" (environment): expected "
                                   "http://host:port without a user or password\n"));
    config_raws_fini(&raws);
    buf_clear(&errors);
    text("instances[1].name", "a");
    text("instances[1].url", "http://a:1");
    env("CHROMA_INSTANCES", "a=http://a:1;b=http://u:hunter2@b:1");
    assert_null(config_build(&raws, &errors));
    assert_null(strstr(said(), "hunter2"));
}

static void long_values_and_many_mistakes_stay_bounded(void **state)
{
    char *long_text = base_alloc(100001);
    memset(long_text, 'x', 100000);
    long_text[100000] = 0;
    with_primary();
    env("PORT", long_text);
    config_raws_add(&raws, long_text, "1", CONFIG_TEXT, "--set");
    assert_null(config_build(&raws, &errors));
    assert_true(buf_len(&errors) < 1000);
    free(long_text);
    struct buf small;
    buf_init(&small, 300);
    for (int i = 0; i < 100; i++)
        env("PORT", "fast");
    assert_null(config_build(&raws, &small));
    assert_true(buf_len(&small) > 60 && buf_len(&small) <= 300);
    assert_int_equal(buf_data(&small)[buf_len(&small) - 1], '\n');
    buf_fini(&small);
}

static void unreloadable_changes_are_named(void **state)
{
    struct buf names;
    buf_init(&names, 1000);
    with_primary();
    struct config *was = config_build(&raws, &errors);
    set("PORT", "1");
    set("CHECK_INTERVAL", "9");
    set("POLICY_DIR", "elsewhere");
    config_unreloadable(was, good(), &names);
    buf_put(&names, "", 1);
    assert_string_equal(buf_data(&names), "PORT, POLICY_DIR");
    config_free(was);
    buf_fini(&names);
}

static void pages_show_everything_but_secrets(void **state)
{
    struct buf page;
    buf_init(&page, 1u << 20);
    with_primary();
    set("DATABASE_URL", "hunter2");
    set("CHECK_INTERVAL", "200ms");
    set("MAX_HEAD_BYTES", "64k");
    config_print(good(), &page);
    buf_put(&page, "", 1);
    assert_null(strstr(buf_data(&page), "hunter2"));
    assert_non_null(strstr(buf_data(&page), "\nDATABASE_URL=***\n"));
    assert_non_null(strstr(buf_data(&page), "\nSLACK_WEBHOOK_URL=\n"));
    assert_non_null(strstr(buf_data(&page), "\nCHECK_INTERVAL=0.2\n"));
    assert_non_null(strstr(buf_data(&page), "\nMAX_HEAD_BYTES=65536\n"));
    assert_non_null(strstr(buf_data(&page), "\ninstance primary http://127.0.0.1:8001 "
                                            "role=primary priority=100 weight=1 maxconn=256\n"));
    buf_clear(&page);
    config_explain(&page);
    buf_put(&page, "", 1);
#define CHECK_NAME(f, NAME, type, def, lo, hi, reload, doc)                                        \
    assert_non_null(strstr(buf_data(&page), #NAME " "));                                           \
    assert_non_null(strstr(buf_data(&page), " " doc "\n"));
    SETTINGS(CHECK_NAME)
    buf_fini(&page);
}

static void a_later_complaint_names_value_and_source(void **state)
{
    with_primary();
    set("ACCESS_LOG", "a\"b");
    env("CHECK_INTERVAL", "200ms");
    set("DATABASE_URL", "hunter2");
    const struct config *c = good();
    config_complain(c, "ACCESS_LOG", "expected more", &errors);
    config_complain(c, "CHECK_INTERVAL", "expected more", &errors);
    config_complain(c, "LOG_LEVEL", "expected more", &errors);
    config_complain(c, "DATABASE_URL", "expected more", &errors);
    assert_string_equal(said(), "ACCESS_LOG = \"a\"b\" (--set): expected more\n"
                                "CHECK_INTERVAL = 0.2 (environment): expected more\n"
                                "LOG_LEVEL = \"info\" (default): expected more\n"
                                "DATABASE_URL = *** (--set): expected more\n");
}

static void explained_rows_stand_in_columns(void **state)
{
    struct buf page;
    unsigned rows = 0, settings = 0;
    buf_init(&page, 1u << 20);
    config_explain(&page);
    buf_put(&page, "", 1);
    long defaults = -1, reloads = -1, types = -1;
    for (const char *line = buf_data(&page); *line >= 'A' && *line <= 'Z'; rows++) {
        const char *word = strstr(line, " default "), *reload = word + 9, *doc, *type;
        assert_non_null(word);
        reload += strcspn(reload, " ");
        reload += strspn(reload, " ");
        type = reload + strcspn(reload, " ");
        type += strspn(type, " ");
        assert_true(strncmp(reload, "HUP ", 4) == 0 || strncmp(reload, "restart ", 8) == 0);
        if (rows == 0) {
            defaults = word - line;
            reloads = reload - line;
            types = type - line;
        }
        assert_int_equal(word - line, defaults);
        assert_int_equal(reload - line, reloads);
        assert_int_equal(type - line, types);
        doc = strchr(line, '\n') + 1;
        assert_int_equal(strspn(doc, " "), defaults + 1);
        line = strchr(doc, '\n') + 1;
    }
#define COUNT_ROW(...) settings++;
    SETTINGS(COUNT_ROW)
    assert_int_equal(rows, settings);
    buf_fini(&page);
}

struct visited {
    unsigned count;
    bool secret, interval, flag, strategy;
};

static void visit(void *arg, const char *name, enum config_kind kind, const char *value)
{
    struct visited *v = arg;
    v->count++;
    v->secret |= strcmp(name, "DATABASE_URL") == 0 || strcmp(value, "hunter2") == 0;
    v->interval |=
        strcmp(name, "CHECK_INTERVAL") == 0 && kind == CONFIG_NUMBER && strcmp(value, "0.2") == 0;
    v->flag |= strcmp(name, "SYNC_DISTRIBUTED") == 0 && kind == CONFIG_BOOLEAN &&
               strcmp(value, "false") == 0;
    v->strategy |= strcmp(name, "LOAD_BALANCE_STRATEGY") == 0 && kind == CONFIG_TEXT &&
                   strcmp(value, "write_primary") == 0;
}

static void policies_see_all_but_secrets(void **state)
{
    struct visited v = {0};
    unsigned settings = 0, secrets = 3;
#define COUNT_ONE(...) settings++;
    SETTINGS(COUNT_ONE)
    with_primary();
    set("DATABASE_URL", "hunter2");
    set("CHECK_INTERVAL", "200ms");
    config_each(good(), visit, &v);
    assert_int_equal(v.count, settings - secrets);
    assert_true(v.interval && v.flag && v.strategy);
    assert_false(v.secret);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(defaults_hold_where_nothing_is_said),
        TEST(later_sources_override_earlier_ones),
        TEST(seconds_and_bytes_carry_units),
        TEST(nonsense_is_no_number),
        TEST(booleans_have_a_few_words),
        TEST(whole_numbers_keep_their_range),
        TEST(the_file_is_strict_about_types),
        TEST(closed_sets_and_shapes_are_closed),
        TEST(unknown_names_get_the_nearest_one),
        TEST(the_environment_gives_documented_and_prefixed_names),
        TEST(one_setting_under_two_names_must_agree),
        TEST(the_two_urls_are_primary_and_replica),
        TEST(a_list_of_instances_is_sorted_by_priority),
        TEST(rows_of_the_file_are_instances),
        TEST(bad_rows_are_told_all_at_once),
        TEST(urls_are_plain_http_to_a_host),
        TEST(impossible_combinations_are_refused),
        TEST(a_try_fits_into_its_request),
        TEST(connecting_fits_into_its_request),
        TEST(a_target_fits_into_its_head),
        TEST(the_admin_port_is_another),
        TEST(addresses_are_no_names),
        TEST(chromux_is_no_instance_of_its_own),
        TEST(an_override_ends_a_conflict),
        TEST(instances_must_differ_and_have_one_primary),
        TEST(broken_lists_are_told),
        TEST(sixty_four_instances_and_no_more),
        TEST(no_error_repeats_a_secret),
        TEST(long_values_and_many_mistakes_stay_bounded),
        TEST(unreloadable_changes_are_named),
        TEST(pages_show_everything_but_secrets),
        TEST(a_later_complaint_names_value_and_source),
        TEST(explained_rows_stand_in_columns),
        TEST(policies_see_all_but_secrets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
