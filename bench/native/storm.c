/* Every service fails at once, at full speed: some processes, each client and server of its share
 * of the connections, one to a service, send requests that are answered with 500 as fast as they
 * can, round and round, until its breaker has reset each of them. One good request on each comes
 * first, and --hold-ms of connect() attempts last, which must all be refused. Prints what was sent
 * and what came of it. */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/wait.h>

#include "attempts.h"

#define MOST 2

struct share {
	unsigned first, count;
	uint16_t port;
	uint64_t good, failures, resets, refused, admitted, began, ended;
};

static unsigned hold_ms;
/* Shared by the processes. */
static struct {
	pthread_barrier_t barrier;
	struct share shares[MOST];
} * state;

static int ask(int client, int server, unsigned status)
{
	char text[4096];
	int length = snprintf(text, sizeof(text), "GET /%u HTTP/1.1\r\nHost: a\r\n\r\n", status);

	if (send(client, text, (size_t)length, MSG_NOSIGNAL) != length)
		return -1;
	/* Rejected: both ends are reset. */
	if (recv(server, text, sizeof(text), 0) <= 0)
		return -1;
	length = snprintf(
		text, sizeof(text), "HTTP/1.1 %u X\r\nContent-Length: 2\r\n\r\nok", status);
	if (send(server, text, (size_t)length, MSG_NOSIGNAL) != length)
		die("an answer");
	if (recv(client, text, sizeof(text), 0) <= 0)
		die("an answer's arrival");
	return 0;
}

static void run(struct share *share)
{
	int listener = listen_on(share->port);
	int *clients = calloc(share->count, sizeof(int)),
	    *servers = calloc(share->count, sizeof(int));
	unsigned open = share->count;

	for (unsigned number = 0; number < share->count; number++) {
		struct sockaddr_in address = service_endpoint(share->first + number);

		address.sin_port = htons(share->port);
		clients[number] = connect_to(address);
		servers[number] = accept(listener, NULL, NULL);
		set_nodelay(servers[number]);
		if (ask(clients[number], servers[number], 200))
			die("a good request");
		share->good++;
	}
	pthread_barrier_wait(&state->barrier);
	share->began = now_ns();
	while (open) {
		for (unsigned number = 0; number < share->count; number++) {
			if (clients[number] < 0)
				continue;
			if (!ask(clients[number], servers[number], 500)) {
				share->failures++;
				continue;
			}
			share->resets++;
			close(clients[number]);
			close(servers[number]);
			clients[number] = -1;
			open--;
		}
	}
	share->ended = now_ns();
	for (unsigned number = 0; now_ns() < share->ended + hold_ms * 1000000ull; number++) {
		struct sockaddr_in address = service_endpoint(share->first + number % share->count);
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		address.sin_port = htons(share->port);
		if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
			share->refused++;
		else
			share->admitted++;
		drop(fd);
	}
}

int main(int count, char **words)
{
	unsigned services = number_of(count, words, "--services", 10000);
	unsigned processes = number_of(count, words, "--processes", 2);
	struct share all = {.began = UINT64_MAX};
	pthread_barrierattr_t shared;
	pid_t children[MOST];

	hold_ms = number_of(count, words, "--hold-ms", 1000);
	state = mmap(
		NULL, sizeof(*state), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (state == MAP_FAILED || processes < 1 || processes > MOST)
		return 2;
	pthread_barrierattr_init(&shared);
	pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
	pthread_barrier_init(&state->barrier, &shared, processes);
	for (unsigned number = 0; number < processes; number++) {
		struct share *share = &state->shares[number];

		share->first = services / processes * number;
		share->count = services / processes;
		share->port = SERVICE_PORT + number;
		children[number] = fork();
		if (children[number] == 0) {
			run(share);
			_exit(0);
		}
	}
	for (unsigned number = 0; number < processes; number++) {
		int status;

		if (wait(&status) > 0 && status == 0)
			continue;
		for (unsigned other = 0; other < processes; other++)
			kill(children[other], SIGKILL);
		return 1;
	}
	for (unsigned number = 0; number < processes; number++) {
		struct share *share = &state->shares[number];

		all.good += share->good;
		all.failures += share->failures;
		all.resets += share->resets;
		all.refused += share->refused;
		all.admitted += share->admitted;
		all.began = share->began < all.began ? share->began : all.began;
		all.ended = share->ended > all.ended ? share->ended : all.ended;
	}
	printf("{\"good\": %lu, \"failures\": %lu, \"resets\": %lu, \"refused\": %lu, "
	       "\"admitted\": %lu, "
	       "\"seconds\": %.6f}\n",
		all.good, all.failures, all.resets, all.refused, all.admitted,
		(all.ended - all.began) / 1e9);
	return 0;
}
