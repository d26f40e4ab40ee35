/* How long it takes to open a breaker by hand: from the request's bytes on the control socket, or
 * from the start of meshctl (--meshctl PATH), to the first connect() that is refused. Each trial
 * has a service of its own, and one thread that calls connect() all the time. */
#define _GNU_SOURCE
#include <spawn.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "attempts.h"

extern char **environ;

static int control_socket(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)))
		die("the control socket");
	return fd;
}

int main(int count, char **words)
{
	unsigned trials = number_of(count, words, "--trials", 1);
	unsigned first = number_of(count, words, "--first", 0);
	const char *control = text_of(count, words, "--control");
	const char *meshctl = text_of(count, words, "--meshctl");
	int listeners[] = {listen_on(SERVICE_PORT), -1};

	prctl(PR_SET_TIMERSLACK, 1);
	srand(first + 1);
	start_thread(serve, listeners);
	printf("{\"seconds\": [");
	for (unsigned trial = 0; trial < trials; trial++) {
		struct sockaddr_in address = service_endpoint(first + trial);
		const char *body = "{\"reason\": \"bench\", \"for_seconds\": 60}";
		char name[16], text[512];
		uint64_t began, refused;
		unsigned admitted;
		pid_t child = 0;
		int fd = -1, result = 0;

		snprintf(name, sizeof(name), "s%u", first + trial);
		drop(connect_to(address));
		if (meshctl) {
			char *command[] = {(char *)meshctl, "--control", (char *)control, "breaker",
				"open", name, "--reason", "bench", NULL};
			posix_spawn_file_actions_t files;

			posix_spawn_file_actions_init(&files);
			posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
			began = now_ns();
			result = posix_spawn(&child, meshctl, &files, NULL, command, environ);
			if (result)
				die("posix_spawn");
			posix_spawn_file_actions_destroy(&files);
		} else {
			fd = control_socket(control);
			snprintf(text, sizeof(text),
				"POST /v1/breakers/%s/open HTTP/1.1\r\nHost: a\r\n"
				"Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
				name, strlen(body), body);
			began = now_ns();
			send_all(fd, text);
		}
		refused = until_refused(address, &admitted);
		if (!refused) {
			fprintf(stderr, "%s was never refused\n", name);
			return 1;
		}
		if (meshctl)
			waitpid(child, &result, 0);
		else
			result = receive_status(fd) != 200;
		if (result) {
			fprintf(stderr, "the agent did not take the override of %s\n", name);
			return 1;
		}
		if (fd >= 0)
			close(fd);
		printf("%s%.9f", trial ? ", " : "", (refused - began) / 1e9);
		sleep_for(5000000 + (uint64_t)rand() % 20000000);
	}
	printf("]}\n");
	return 0;
}
