/* How long it takes from the response that decides, in the client's hands, to the first attempt
 * that is refused: of connect() under a breaker, or of a request through a proxy, which then
 * answers 503 by itself. Each trial has a service of its own. --rate: background requests per
 * second. --through PORT: the proxy listens there for trial 0, and goes to --server PORT; one port
 * up of each for each trial. */
#define _GNU_SOURCE
#include "attempts.h"

static char request[256];

/* Sends requests through the proxy until it refuses one. */
static uint64_t until_rejected(int fd, unsigned *admitted)
{
	uint64_t limit = now_ns() + PATIENCE_NS;

	for (*admitted = 0;; ++*admitted) {
		send_all(fd, request);
		int status = receive_status(fd);
		uint64_t at = now_ns();

		if (status == 503)
			return at;
		if (status < 0)
			die("the proxy");
		if (at > limit)
			return 0;
	}
}

/* How long this thread has waited for a CPU so far while it could have run (proc(5), schedstat). */
static uint64_t waited_ns(void)
{
	static int file = -1;
	char text[96] = "";
	unsigned long long run = 0, waited = 0;

	if (file < 0)
		file = check(
			open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC), "schedstat");
	check(pread(file, text, sizeof(text) - 1, 0), "schedstat");
	sscanf(text, "%llu %llu", &run, &waited);
	return waited;
}

int main(int count, char **words)
{
	unsigned trials = number_of(count, words, "--trials", 1);
	unsigned first = number_of(count, words, "--first", 0);
	unsigned calls = number_of(count, words, "--calls", 5);
	unsigned status = number_of(count, words, "--status", 500);
	unsigned delay = number_of(count, words, "--delay-us", 0);
	unsigned pause = number_of(count, words, "--pause-ms", 30);
	uint16_t proxy = number_of(count, words, "--through", 0);
	struct background background = {.rate = number_of(count, words, "--rate", 10)};
	uint16_t server = number_of(count, words, "--server", 0);
	double *waits = calloc(trials + 1, sizeof(double));
	int *listeners = calloc(trials + 2, sizeof(int));
	unsigned never = 0;
	uint64_t admitted_all = 0;

	prctl(PR_SET_TIMERSLACK, 1);
	srand(first + 1);
	listeners[0] = proxy ? listen_on(server + first) : listen_on(SERVICE_PORT);
	listeners[1] = -1;
	for (unsigned trial = 1; proxy && trial < trials; trial++) {
		listeners[trial] = listen_on(server + first + trial);
		listeners[trial + 1] = -1;
	}
	start_thread(serve, listeners);
	start_thread(run_background, &background);
	sleep_for(200000000);
	printf("{\"seconds\": [");
	for (unsigned trial = 0; trial < trials; trial++) {
		struct sockaddr_in address = service_endpoint(first + trial);
		uint64_t decided = 0, refused;
		unsigned admitted;
		int fd;

		if (proxy) {
			address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
			address.sin_port = htons(proxy + first + trial);
		}
		snprintf(request, sizeof(request), "GET /%u/%u HTTP/1.1\r\nHost: s%u\r\n\r\n",
			status, delay, first + trial);
		fd = connect_to(address);
		for (unsigned call = 0; call < calls; call++) {
			send_all(fd, request);
			int got = receive_status(fd);
			decided = now_ns();
			if (got != (int)status) {
				fprintf(stderr, "trial %u, call %u: %d instead of %u\n", trial,
					call, got, status);
				return 1;
			}
		}
		uint64_t waited = waited_ns();
		refused = proxy ? until_rejected(fd, &admitted) : until_refused(address, &admitted);
		waits[trial - never] = (waited_ns() - waited) / 1e9;
		drop(fd);
		if (refused)
			printf("%s%.9f", trial > never ? ", " : "", (refused - decided) / 1e9);
		else
			never++;
		admitted_all += admitted;
		pause_for(pause);
	}
	background.stopping = true;
	printf("], \"waited\": [");
	for (unsigned trial = 0; trial < trials - never; trial++)
		printf("%s%.9f", trial ? ", " : "", waits[trial]);
	printf("], \"never\": %u, \"admitted\": %lu, \"rate\": %.1f}\n", never, admitted_all,
		achieved(&background));
	return 0;
}
