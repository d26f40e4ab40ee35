/*
 * segments SEED INPUTS CORPUS: a peer that sends what no TCP would. Through the TUN device fuzz0 it
 * completes handshakes with a real server and then sends segments that overlap, leave holes, come
 * again, end or reset where they should not, or are damaged, with requests from a corpus and their
 * mutations in them. The server answers whatever it reads. Prints what the two real ends can know:
 * connections, bytes that the server read, answers that it gave.
 */
#define _GNU_SOURCE
#include <poll.h>

#include "tun.h"

#define SEGMENTS 16 /* of a connection */

static const char answer[] = "HTTP/1.1 200 OK\r\n\r\n";
static const uint8_t peer[] = {10, 78, 0, 2};
static struct {
	uint64_t connections, segments, bytes, answers;
} tally;

/* Where both ends are by what the kernel sends. */
struct state {
	uint16_t port;
	uint32_t next;	       /* what the server expects */
	uint32_t acknowledged; /* what it has sent */
};

static void follow(struct state *state)
{
	const uint8_t *tcp;
	uint32_t length;

	while ((tcp = take_segment(&length))) {
		uint32_t header = (uint32_t)(tcp[12] >> 4) * 4, end;

		if (tcp[2] != state->port >> 8 || tcp[3] != (state->port & 0xff) ||
			header > length || (tcp[13] & RST))
			continue;
		end = get32(tcp + 4) + length - header + ((tcp[13] & (SYN | FIN)) != 0);
		if ((tcp[13] & SYN) || (int32_t)(end - state->acknowledged) > 0)
			state->acknowledged = end;
		if (tcp[13] & ACK)
			state->next = get32(tcp + 8);
	}
}

static struct segment segment_of(const struct state *state, uint8_t flags)
{
	struct segment made = {.port = state->port,
		.sequence = state->next,
		.acknowledged = state->acknowledged,
		.flags = flags};

	memcpy(made.source, peer, sizeof(peer));
	return made;
}

static void send_one(const struct state *state)
{
	struct segment segment = segment_of(state, ACK | PSH);
	struct input input;

	mutate(&input, one_in(2) ? 0 : 4, 1400);
	segment.payload = input.bytes;
	segment.length = input.length;
	switch (random_below(16)) {
	case 0: /* some of it again, or all */
		segment.sequence -= random_below(80);
		break;
	case 1: /* a hole, which the next may fill */
		segment.sequence += 1 + random_below(80);
		break;
	case 2:
		segment.sequence = (uint32_t)random_bits();
		break;
	case 3:
		segment.acknowledged += random_below(200) - 100;
		break;
	case 4:
		segment.flags = (uint8_t)random_bits();
		break;
	case 5: /* a reset that is not where it has to be */
		segment.flags = RST;
		segment.sequence += 1 + random_below(1000);
		break;
	case 6:
		segment.damage = (uint16_t)random_bits();
		break;
	case 7:
		segment.offset = (uint8_t)random_below(16);
		break;
	default:
		break;
	}
	put_segment(&segment);
	tally.segments++;
}

static void play(uint64_t number)
{
	struct pollfd wanted = {.fd = listener, .events = POLLIN};
	struct state state = {.port = (uint16_t)(1024 + number % 60000)};
	/* A reset at the end, so that no port has to wait. */
	struct linger linger = {.l_onoff = 1};
	struct segment segment;
	uint8_t buffer[65536];
	bool ended = false;
	int server;

	begin_input(number);
	state.next = (uint32_t)random_bits();
	segment = segment_of(&state, SYN);
	put_segment(&segment);
	follow(&state);
	segment = segment_of(&state, ACK);
	put_segment(&segment);
	if (poll(&wanted, 1, 10000) != 1)
		broken(NULL, 0, "the handshake did not end");
	server = check(accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), "accept");
	check(setsockopt(server, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), "SO_LINGER");
	tally.connections++;
	for (uint32_t n = 0; n < SEGMENTS; n++) {
		ssize_t got = -1;

		send_one(&state);
		while (!ended && (got = read(server, buffer, sizeof(buffer))) > 0) {
			tally.bytes += (uint64_t)got;
			if (send(server, answer, sizeof(answer) - 1, MSG_NOSIGNAL) > 0)
				tally.answers++;
		}
		ended = ended || got == 0 || (got < 0 && errno != EAGAIN);
		follow(&state);
	}
	close(server);
	follow(&state);
	/* A SYN by chance, once the connection was reset, and an ACK behind it have made another.
	 */
	while ((server = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		ssize_t got;

		check(setsockopt(server, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)),
			"SO_LINGER");
		tally.connections++;
		while ((got = read(server, buffer, sizeof(buffer))) > 0)
			tally.bytes += (uint64_t)got;
		close(server);
	}
}

int main(int count, char **words)
{
	uint64_t inputs;
	int yes = 1;

	inputs = begin(count, words, 4, "segments SEED INPUTS CORPUS");
	open_tun(64);
	check(fcntl(listener, F_SETFL, O_NONBLOCK), "O_NONBLOCK");
	/* Urgent bytes are read like all others; connections have that of their listener. */
	check(setsockopt(listener, SOL_SOCKET, SO_OOBINLINE, &yes, sizeof(yes)), "SO_OOBINLINE");
	for (uint64_t number = 0; number * SEGMENTS < inputs; number++)
		play(number);
	printf("{\"connections\": %llu, \"segments\": %llu, \"bytes\": %llu, \"answers\": %llu}\n",
		(unsigned long long)tally.connections, (unsigned long long)tally.segments,
		(unsigned long long)tally.bytes, (unsigned long long)tally.answers);
	return 0;
}
