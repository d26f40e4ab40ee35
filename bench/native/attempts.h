/* What the programs about breakers share: services by number, a server that answers as it is asked
 * to, background traffic at a rate, and attempts that are made until one is refused. */
#ifndef ATTEMPTS_H
#define ATTEMPTS_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "program.h"

#define SERVICE_PORT 7000
#define BACKGROUND_PORT 7001
#define BACKGROUND_SERVICES 100
/* An attempt that is not refused for so long never will be. */
#define PATIENCE_NS 2000000000ull

static inline void sleep_until(uint64_t at)
{
	struct timespec when = {(time_t)(at / 1000000000ull), (long)(at % 1000000000ull)};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR)
		continue;
}

static inline void sleep_for(uint64_t ns)
{
	sleep_until(now_ns() + ns);
}

/* Between two trials, so many ms more or less: they are at no fixed place in the agent's and the
 * background's periods. */
static inline void pause_for(unsigned ms)
{
	sleep_for(ms * 500000ull + (uint64_t)rand() % (ms * 1000000ull + 1));
}

/* The endpoint of a service: 127.(first + n / 250).(n % 250).1, as the scenario configures it. */
static inline struct sockaddr_in endpoint(unsigned first, unsigned number, uint16_t port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};

	address.sin_addr.s_addr =
		htonl(127u << 24 | (first + number / 250) << 16 | number % 250 << 8 | 1);
	return address;
}

static inline struct sockaddr_in service_endpoint(unsigned number)
{
	return endpoint(1, number, SERVICE_PORT);
}

static inline void set_nodelay(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

/* Closes with RST, so that no port stays in TIME_WAIT. */
static inline void drop(int fd)
{
	struct linger hard = {.l_onoff = 1};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	close(fd);
}

static inline int listen_on(uint16_t port)
{
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&any, sizeof(any)) || listen(fd, 4096))
		die("listen");
	return fd;
}

static inline int connect_to(struct sockaddr_in address)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)))
		die("connect");
	set_nodelay(fd);
	return fd;
}

static inline void send_all(int fd, const char *text)
{
	size_t length = strlen(text);

	if (send(fd, text, length, MSG_NOSIGNAL) != (ssize_t)length)
		die("send");
}

/* Reads what is there of a response, all of it on these short ones, and returns its status. */
static inline int receive_status(int fd)
{
	char text[4096];
	ssize_t length = recv(fd, text, sizeof(text) - 1, 0);

	if (length < 12)
		return -1;
	return atoi(text + 9);
}

/* The server. A request's path says how it is answered: /STATUS/MICROSECONDS. */

static inline size_t answer_to(const char *request, char *answer, size_t room)
{
	unsigned status = 200, delay = 0;

	if (sscanf(request, "GET /%u/%u", &status, &delay) != 2)
		die("a request that is none");
	if (delay)
		sleep_for(delay * 1000ull);
	return (size_t)snprintf(
		answer, room, "HTTP/1.1 %u X\r\nContent-Length: 2\r\n\r\nok", status);
}

static inline void watch(int poller, int fd, bool listens)
{
	struct epoll_event event = {
		.events = EPOLLIN, .data.u64 = (uint64_t)fd | (uint64_t)listens << 32};

	epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

/* Serves what connects to any of some listeners, the last of which is followed by -1. */
static inline void *serve(void *argument)
{
	int poller = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event ready[64];
	char request[4096], answer[256];

	for (int *listener = argument; *listener >= 0; listener++)
		watch(poller, *listener, true);
	for (;;) {
		int count = epoll_wait(poller, ready, 64, -1);

		for (int index = 0; index < count; index++) {
			int fd = (int)ready[index].data.u64;

			if (ready[index].data.u64 >> 32) {
				fd = accept(fd, NULL, NULL);
				if (fd < 0)
					continue;
				set_nodelay(fd);
				watch(poller, fd, false);
				continue;
			}
			ssize_t length = recv(fd, request, sizeof(request) - 1, 0);
			if (length <= 0) {
				/* A child between its fork and its exec has it, too: close() alone
				 * would leave it watched, under a number that is another's by then.
				 */
				epoll_ctl(poller, EPOLL_CTL_DEL, fd, NULL);
				close(fd);
				continue;
			}
			request[length] = 0;
			send(fd, answer, answer_to(request, answer, sizeof(answer)), MSG_NOSIGNAL);
		}
	}
	return NULL;
}

static inline void start_thread(void *(*body)(void *), void *argument)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, body, argument))
		die("pthread_create");
	pthread_detach(thread);
}

/* Background traffic: one thread that is client and server of healthy services, at a rate. */

struct background {
	double rate;
	volatile bool stopping;
	uint64_t requests;
	uint64_t began, ended;
};

static inline void *run_background(void *argument)
{
	struct background *background = argument;
	static int clients[BACKGROUND_SERVICES], servers[BACKGROUND_SERVICES];
	int listener = listen_on(BACKGROUND_PORT);
	char text[4096];
	/* Wake-ups are coarser than 20 us: at high rates a few requests are due at each. */
	uint64_t step = (uint64_t)(1e9 / background->rate), sleep = step < 200000 ? 200000 : step;

	for (unsigned number = 0; number < BACKGROUND_SERVICES; number++) {
		clients[number] = connect_to(endpoint(100, number, BACKGROUND_PORT));
		servers[number] = accept(listener, NULL, NULL);
		set_nodelay(servers[number]);
	}
	background->began = now_ns();
	for (uint64_t due = background->began; !background->stopping;) {
		unsigned number = background->requests % BACKGROUND_SERVICES;

		send_all(clients[number], "GET /200/0 HTTP/1.1\r\nHost: a\r\n\r\n");
		if (recv(servers[number], text, sizeof(text), 0) <= 0)
			die("background");
		send_all(servers[number], "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
		if (recv(clients[number], text, sizeof(text), 0) <= 0)
			die("background");
		background->requests++;
		due += step;
		uint64_t now = now_ns();
		if (due > now && (step >= 200000 || due - now > sleep))
			sleep_until(due);
		else if (now > due + 10000000)
			due = now; /* too slow for the rate: what was achieved is reported */
	}
	background->ended = now_ns();
	return NULL;
}

static inline double achieved(const struct background *background)
{
	uint64_t ended = background->ended ? background->ended : now_ns();

	return background->requests / ((ended - background->began) / 1e9);
}

/* Calls connect() until it is refused. Returns when that was, 0 if it never was; counts the others.
 */
static inline uint64_t until_refused(struct sockaddr_in address, unsigned *admitted)
{
	uint64_t limit = now_ns() + PATIENCE_NS;

	for (*admitted = 0;; ++*admitted) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (fd < 0)
			die("a socket for an attempt");
		if (connect(fd, (struct sockaddr *)&address, sizeof(address))) {
			uint64_t refused = now_ns();

			if (errno != ECONNREFUSED)
				die("attempt");
			close(fd);
			return refused;
		}
		drop(fd);
		if (now_ns() > limit)
			return 0;
	}
}

static inline unsigned long number_of(
	int count, char **words, const char *name, unsigned long otherwise)
{
	for (int index = 1; index + 1 < count; index++)
		if (!strcmp(words[index], name))
			return strtoul(words[index + 1], NULL, 10);
	return otherwise;
}

static inline const char *text_of(int count, char **words, const char *name)
{
	for (int index = 1; index + 1 < count; index++)
		if (!strcmp(words[index], name))
			return words[index + 1];
	return NULL;
}

#endif
