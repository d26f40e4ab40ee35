/*
 * responses SEED FIRST INPUTS CORPUS, and the same with goodbye behind it: both ends of loopback
 * connections in one thread, with bytes from a corpus and its mutations, and what the kernel side
 * must make of them by a second reading of the same rules.
 *
 * Without `goodbye`: each input is the response to a request, in as many segments as chance wants,
 * down to one for each byte. Prints how many requests must have ended with each code, on the
 * service of port 9001; on that of 9002, those where garbage follows an interim response, so that
 * only their number is certain.
 *
 * With it: each input is what a client sends last, before the server closes. It is a goodbye, or a
 * request that is aborted (port 9001; after a TLS handshake, port 9002).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "fuzz.h"

#define EXACT 9001
#define LOOSE 9002
#define LONGEST 400 /* bytes of a response: some segments, but not hundreds */

enum { OK = 1000, ABORTED, CODES, UNCERTAIN };

struct connection {
	int client, server;
};

static int listeners[2];
static struct connection open_connection = {-1, -1};
static uint64_t codes[CODES], uncertain, answered[2], goodbyes[2], aborted[2];

static int listening(uint16_t port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int made = check(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"), yes = 1;

	check(setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)), "SO_REUSEADDR");
	check(bind(made, (struct sockaddr *)&address, sizeof(address)), "bind");
	check(listen(made, 16), "listen");
	return made;
}

static struct connection connected(uint16_t port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	/* A reset at the end, so that no port has to wait. */
	struct linger linger = {.l_onoff = 1};
	struct connection made;
	int yes = 1;

	made.client = check(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
	check(setsockopt(made.client, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), "SO_LINGER");
	check(setsockopt(made.client, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes)), "TCP_NODELAY");
	check(connect(made.client, (struct sockaddr *)&address, sizeof(address)), "connect");
	made.server = check(accept(listeners[port != EXACT], NULL, NULL), "accept");
	check(setsockopt(made.server, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes)), "TCP_NODELAY");
	return made;
}

/* The server closes first: it has said all that it will. */
static void end(struct connection *connection)
{
	uint8_t byte;

	if (connection->client < 0)
		return;
	close(connection->server);
	while (read(connection->client, &byte, 1) > 0)
		;
	close(connection->client);
	connection->client = connection->server = -1;
}

static void drain(int fd, uint32_t length)
{
	uint8_t buffer[LONGEST_INPUT];

	while (length > 0) {
		ssize_t got = read(fd, buffer, length < sizeof(buffer) ? length : sizeof(buffer));

		if (got <= 0)
			die("read");
		length -= (uint32_t)got;
	}
}

/* Sends bytes, each piece as a segment of its own, and reads them at the other end. */
static void pass(int from, int to, const uint8_t *bytes, uint32_t length, bool split)
{
	uint32_t most = one_in(8) ? 1 : length < 2 ? 1 : 1 + random_below(length);

	for (uint32_t sent = 0; sent < length;) {
		uint32_t size = split ? 1 + random_below(most) : length;

		if (size > length - sent)
			size = length - sent;
		if (write(from, bytes + sent, size) != (ssize_t)size)
			die("write");
		sent += size;
	}
	drain(to, length);
}

/* Whether bytes begin a status line, as far as they go: 12 when they do in full. */
static int status_bytes(const uint8_t *bytes, uint32_t length)
{
	const char *wanted = "HTTP/1.";
	uint32_t i;

	for (i = 0; i < length && i < 12; i++) {
		bool digit = bytes[i] >= '0' && bytes[i] <= '9';

		if (i < 7 ? bytes[i] != (uint8_t)wanted[i] : i == 8 ? bytes[i] != ' ' : !digit)
			return -1;
	}
	return (int)i;
}

/* How a request ends whose response is these bytes and then nothing more. */
static int outcome(const uint8_t *bytes, uint32_t length)
{
	bool interim = false;

	for (;;) {
		int matched = status_bytes(bytes, length), status;
		const uint8_t *header_end;

		if (matched < 0)
			return interim ? UNCERTAIN : OK;
		if (matched < 12)
			/* The connection ends: a response had begun, or none had. */
			return matched ? OK : ABORTED;
		status = (bytes[9] - '0') * 100 + (bytes[10] - '0') * 10 + bytes[11] - '0';
		if (status < 100)
			return OK;
		if (status >= 200 || status == 101)
			return status;
		header_end = memmem(bytes, length, "\r\n\r\n", 4);
		if (!header_end)
			return ABORTED;
		header_end += 4;
		length -= (uint32_t)(header_end - bytes);
		bytes = header_end;
		interim = true;
	}
}

/* Whether the request is over before its connection is. */
static bool ends_early(const struct input *input, int code)
{
	return code != ABORTED && code != UNCERTAIN && code != 101 &&
	       status_bytes(input->bytes, input->length) != (int)input->length &&
	       !(code == OK && memmem(input->bytes, input->length, "HTTP/1.", 7));
}

static void respond(uint64_t number)
{
	static const char request[] = "GET /some/path HTTP/1.1\r\nHost: test\r\n\r\n";
	struct connection loose;
	struct input input;
	int code;

	begin_input(number);
	if (number < files)
		input = corpus[number];
	else
		mutate(&input, one_in(4) ? 0 : 4, LONGEST);
	if (!input.length)
		input.bytes[input.length++] = 'H';
	code = outcome(input.bytes, input.length);
	if (code == UNCERTAIN) {
		loose = connected(LOOSE);
		pass(loose.client, loose.server, (const uint8_t *)request, sizeof(request) - 1,
			false);
		pass(loose.server, loose.client, input.bytes, input.length, true);
		end(&loose);
		uncertain++;
		return;
	}
	if (open_connection.client < 0)
		open_connection = connected(EXACT);
	pass(open_connection.client, open_connection.server, (const uint8_t *)request,
		sizeof(request) - 1, one_in(4));
	pass(open_connection.server, open_connection.client, input.bytes, input.length, true);
	codes[code]++;
	if (!ends_early(&input, code) || one_in(1000))
		end(&open_connection);
}

static bool is_goodbye(const struct input *input, bool tls)
{
	const uint8_t *bytes = input->bytes;
	uint32_t length = input->length;

	/* A close_notify of TLS 1.3, as all of its alerts look; else a record that holds no data of
	 * its own. */
	if (tls)
		return bytes[0] != 23 || (length == 24 && bytes[3] == 0 && bytes[4] == 19);
	/* A handshake is no request either. */
	if (length >= 2 && bytes[0] == 22 && bytes[1] == 3)
		return true;
	return (length == 6 && !memcmp(bytes, "quit\r\n", 6)) ||
	       (length == 5 && !memcmp(bytes, "X\0\0\0\4", 5)) ||
	       (length == 5 && !memcmp(bytes, "\1\0\0\0\1", 5));
}

static void leave(uint64_t number)
{
	static const uint8_t hello[] = {22, 3, 1, 0, 4, 1, 0, 0, 0}, data[] = {23, 3, 3, 0, 1, 7};
	struct connection made;
	struct input input;
	bool tls;

	begin_input(number);
	tls = one_in(2);
	if (number < files)
		input = corpus[number];
	else
		mutate(&input, one_in(3) ? 0 : 3, 200);
	if (!input.length)
		input.bytes[input.length++] = 'X';
	made = connected(tls ? LOOSE : EXACT);
	if (tls) {
		pass(made.client, made.server, hello, sizeof(hello), false);
		pass(made.server, made.client, hello, sizeof(hello), false);
		pass(made.client, made.server, data, sizeof(data), false);
		pass(made.server, made.client, data, sizeof(data), false);
	} else {
		pass(made.client, made.server, (const uint8_t *)"PING\r\n", 6, false);
		pass(made.server, made.client, (const uint8_t *)"+PONG\r\n", 7, false);
	}
	answered[tls]++;
	pass(made.client, made.server, input.bytes, input.length, false);
	end(&made);
	if (is_goodbye(&input, tls))
		goodbyes[tls]++;
	else
		aborted[tls]++;
}

int main(int count, char **words)
{
	uint64_t first_input, end_of_inputs;

	if (count < 5) {
		fprintf(stderr, "usage: responses SEED FIRST INPUTS CORPUS [goodbye]\n");
		return 2;
	}
	seed = strtoull(words[1], NULL, 10);
	first_input = strtoull(words[2], NULL, 10);
	end_of_inputs = first_input + strtoull(words[3], NULL, 10);
	read_corpus(words[4]);
	listeners[0] = listening(EXACT);
	listeners[1] = listening(LOOSE);
	if (count == 6) {
		for (uint64_t number = first_input; number < end_of_inputs; number++)
			leave(number);
		printf("{\"web\": {\"ok\": %llu, \"aborted\": %llu}, \"tls\": {\"ok\": %llu, "
		       "\"aborted\": %llu}, \"goodbyes\": [%llu, %llu]}\n",
			(unsigned long long)answered[0], (unsigned long long)aborted[0],
			(unsigned long long)answered[1], (unsigned long long)aborted[1],
			(unsigned long long)goodbyes[0], (unsigned long long)goodbyes[1]);
		return 0;
	}
	for (uint64_t number = first_input; number < end_of_inputs; number++)
		respond(number);
	end(&open_connection);
	printf("{\"codes\": {");
	for (int code = 0, first = 1; code < CODES; code++) {
		if (!codes[code])
			continue;
		printf("%s", first ? "" : ", ");
		first = 0;
		if (code < OK)
			printf("\"%d\": %llu", code, (unsigned long long)codes[code]);
		else
			printf("\"%s\": %llu", code == OK ? "ok" : "aborted",
				(unsigned long long)codes[code]);
	}
	printf("}, \"uncertain\": %llu}\n", (unsigned long long)uncertain);
	return 0;
}
