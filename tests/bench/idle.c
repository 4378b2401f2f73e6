/* idle: opens COUNT keep-alive connections one after the other, makes one request on each, reads
 * the whole answer and leaves them open. Prints "ready COUNT", waits for the end of its input, then
 * says how many are still open: a proxy that closed them saved memory by cheating.
 *
 * usage: idle PORT COUNT TARGET   (on 127.0.0.1) */
#include <arpa/inet.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ANSWER_MAX = 65536 };

static bool fail(const char *why)
{
    fprintf(stderr, "idle: %s\n", why);
    return false;
}

/* The length of the whole answer at `a` (a string), 0 while its head is not complete, -1 when it is
 * not a 200 with Content-Length. */
static long answer_length(const char *a)
{
    const char *blank = strstr(a, "\r\n\r\n");
    if (!blank)
        return 0;
    if (strncmp(a, "HTTP/1.1 200", 12) != 0)
        return -1;
    for (const char *line = strstr(a, "\r\n"); line && line < blank;
         line = strstr(line + 2, "\r\n"))
        if (strncasecmp(line + 2, "content-length:", 15) == 0)
            return (blank - a) + 4 + atol(line + 17);
    return -1;
}

static bool ask(int fd, const char *request)
{
    static char answer[ANSWER_MAX + 1];
    size_t have = 0, n = strlen(request);
    if (send(fd, request, n, MSG_NOSIGNAL) != (ssize_t)n)
        return fail("cannot send");
    for (;;) {
        ssize_t got = recv(fd, answer + have, ANSWER_MAX - have, 0);
        if (got <= 0)
            return fail(got < 0 ? strerror(errno) : "closed or too long before the answer's end");
        have += (size_t)got;
        answer[have] = '\0';
        long want = answer_length(answer);
        if (want < 0)
            return fail("not a 200 with Content-Length");
        if (want && have >= (size_t)want)
            return true;
    }
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: idle PORT COUNT TARGET\n");
        return 2;
    }
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    to.sin_port = htons((uint16_t)atoi(argv[1]));
    int count = atoi(argv[2]), open = 0;
    int *fd = calloc((size_t)count + 1, sizeof *fd);
    char request[1024], c;
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\n\r\n", argv[3],
             argv[1]);
    for (int i = 0; fd && i < count; i++) {
        struct timeval limit = {.tv_sec = 5};
        fd[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd[i] < 0 || setsockopt(fd[i], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0 ||
            connect(fd[i], (struct sockaddr *)&to, sizeof to) < 0) {
            perror("idle: connect");
            return 1;
        }
        if (!ask(fd[i], request))
            return 1;
    }
    printf("ready %d\n", count);
    fflush(stdout);
    while (read(0, &c, 1) > 0)
        ;
    for (int i = 0; fd && i < count; i++)
        open += recv(fd[i], &c, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
    printf("open %d\n", open);
    return open == count ? 0 : 1;
}
