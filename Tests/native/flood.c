/*
 * flood SEED GENUINE BETWEEN: what a flood of SYNs leaves of other people's stamps. Through the TUN
 * device fuzz0 come GENUINE SYNs with stamps, then BETWEEN of a flood, each from an address of its
 * own and with a stamp of its own, and then the ACKs that complete the genuine handshakes: so it is
 * decided how many others came in between, however fast the machine is. Prints the ports of the
 * connections that were made, and keeps them until standard input ends. The trace ID of a genuine
 * one is its port, then zeros that end in 1.
 */
#define _GNU_SOURCE
#include <poll.h>

#include "tun.h"

#define FIRST 20000 /* of the genuine ones' ports */
#define MOST 4096

static uint32_t answers[MOST]; /* the server's sequence numbers; 0: no answer yet */

/* Takes the answers that the kernel has sent. */
static void take_answers(uint32_t genuine)
{
	const uint8_t *tcp;
	uint32_t length;

	while ((tcp = take_segment(&length))) {
		uint32_t port = (uint32_t)tcp[2] << 8 | tcp[3];

		if ((tcp[13] & (SYN | ACK)) == (SYN | ACK) && port >= FIRST &&
			port < FIRST + genuine)
			answers[port - FIRST] = get32(tcp + 4);
	}
}

int main(int count, char **words)
{
	uint32_t genuine, made = 0;
	uint64_t between;
	char byte;

	if (count != 4) {
		fprintf(stderr, "usage: flood SEED GENUINE BETWEEN\n");
		return 2;
	}
	seed = strtoull(words[1], NULL, 10);
	genuine = (uint32_t)strtoul(words[2], NULL, 10);
	between = strtoull(words[3], NULL, 10);
	if (genuine > MOST)
		genuine = MOST;
	open_tun(MOST);
	for (uint32_t n = 0; n < genuine; n++) {
		uint8_t id[16] = {[15] = 1};

		put16(id, FIRST + n);
		put_segment(&(struct segment){.source = {10, 78, 0, 2},
			.port = (uint16_t)(FIRST + n),
			.sequence = 1000,
			.flags = SYN,
			.stamp = id});
		take_answers(genuine);
	}
	begin_input(0);
	for (uint64_t n = 0; n < between; n++) {
		uint8_t id[16];
		struct segment syn = {.source = {10, 78}, .flags = SYN, .stamp = id};

		put16(syn.source + 2, 256 + random_below(65000));
		syn.port = (uint16_t)(1 + random_below(65535));
		syn.sequence = (uint32_t)random_bits();
		for (uint32_t i = 0; i < 16; i += 4)
			put32(id + i, (uint32_t)random_bits() | 1);
		put_segment(&syn);
	}
	printf("[");
	for (uint32_t n = 0; n < genuine; n++) {
		struct pollfd wanted = {.fd = listener, .events = POLLIN};

		if (!answers[n])
			continue;
		put_segment(&(struct segment){.source = {10, 78, 0, 2},
			.port = (uint16_t)(FIRST + n),
			.sequence = 1001,
			.acknowledged = answers[n] + 1,
			.flags = ACK});
		if (poll(&wanted, 1, 10000) != 1 || accept(listener, NULL, NULL) < 0)
			break;
		printf("%s%u", made++ ? ", " : "", FIRST + n);
	}
	printf("]\n");
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	return 0;
}
