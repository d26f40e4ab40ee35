/*
 * flood SEED GENUINE BETWEEN: what a flood of SYNs leaves of other people's stamps. Through the TUN
 * device fuzz0 come GENUINE SYNs with stamps, then BETWEEN of a flood, each from an address of its
 * own and with a stamp of its own, and then the ACKs that complete the genuine handshakes: so it is
 * decided how many others came in between, however fast the machine is. Prints the ports of the
 * connections that were made, and keeps them until standard input ends. The trace ID of a genuine
 * one is its port, then zeros that end in 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "fuzz.h"

#define PORT 9001
#define FIRST 20000 /* of the genuine ones' ports */
#define MOST 4096
#define SYN 0x02
#define ACK 0x10

static int tun;
static uint32_t answers[MOST]; /* the server's sequence numbers; 0: no answer yet */

static void put_segment(const uint8_t *source, uint16_t port, uint32_t sequence,
	uint32_t acknowledged, uint8_t flags, const uint8_t *id)
{
	static const uint8_t destination[] = {10, 78, 0, 1};
	uint8_t whole[sizeof(struct virtio_net_hdr) + 64] = {},
						      *ip = whole + sizeof(struct virtio_net_hdr),
						      *tcp = ip + 20;
	uint32_t length = id ? 40 : 20;

	ip[0] = 0x45;
	put16(ip + 2, 20 + length);
	ip[8] = 64;
	ip[9] = IPPROTO_TCP;
	memcpy(ip + 12, source, 4);
	memcpy(ip + 16, destination, 4);
	put16(ip + 10, fold(add_words(0, ip, 20)));
	put16(tcp, port);
	put16(tcp + 2, PORT);
	put32(tcp + 4, sequence);
	put32(tcp + 8, acknowledged);
	tcp[12] = (uint8_t)(length / 4 << 4);
	tcp[13] = flags;
	put16(tcp + 14, 64240);
	if (id) {
		memcpy(tcp + 20, "\xfe\x14MA", 4);
		memcpy(tcp + 24, id, 16);
	}
	put16(tcp + 16, fold(add_words(add_words(IPPROTO_TCP + length, ip + 12, 8), tcp, length)));
	check((int)write(tun, whole, sizeof(struct virtio_net_hdr) + 20 + length),
		"write to fuzz0");
}

/* Takes the answers that the kernel has sent. */
static void take_answers(uint32_t genuine)
{
	uint8_t packet[4096];
	ssize_t length;

	while ((length = read(tun, packet, sizeof(packet))) > 0) {
		uint8_t *ip = packet + sizeof(struct virtio_net_hdr), *tcp = ip + 20;
		uint32_t port;

		if (length < (ssize_t)sizeof(struct virtio_net_hdr) + 40 || ip[0] != 0x45 ||
			(tcp[13] & (SYN | ACK)) != (SYN | ACK))
			continue;
		port = (uint32_t)tcp[2] << 8 | tcp[3];
		if (port >= FIRST && port < FIRST + genuine)
			answers[port - FIRST] = (uint32_t)tcp[4] << 24 | (uint32_t)tcp[5] << 16 |
						(uint32_t)tcp[6] << 8 | tcp[7];
	}
}

int main(int count, char **words)
{
	struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(PORT)};
	static const uint8_t friend[] = {10, 78, 0, 2};
	uint32_t genuine, made = 0;
	uint64_t between;
	int listener;
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
	listener = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
	check(bind(listener, (struct sockaddr *)&address, sizeof(address)), "bind");
	check(listen(listener, MOST), "listen");
	tun = check(open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC), "/dev/net/tun");
	strcpy(request.ifr_name, "fuzz0");
	check(ioctl(tun, TUNSETIFF, &request), "fuzz0");

	/* Until the device has its queue, what the kernel sends there is lost. */
	do
		check(ioctl(listener, SIOCGIFFLAGS, &request), "the state of fuzz0");
	while (!(request.ifr_flags & IFF_RUNNING));

	for (uint32_t n = 0; n < genuine; n++) {
		uint8_t id[16] = {};

		put16(id, FIRST + n);
		id[15] = 1;
		put_segment(friend, (uint16_t)(FIRST + n), 1000, 0, SYN, id);
		take_answers(genuine);
	}
	begin_input(0);
	for (uint64_t n = 0; n < between; n++) {
		uint8_t source[4] = {10, 78}, id[16];

		put16(source + 2, 256 + random_below(65000));
		put32(id, (uint32_t)random_bits());
		put32(id + 4, (uint32_t)random_bits());
		put32(id + 8, (uint32_t)random_bits());
		put32(id + 12, (uint32_t)random_bits() | 1);
		put_segment(source, (uint16_t)(1 + random_below(65535)), (uint32_t)random_bits(), 0,
			SYN, id);
	}
	printf("[");
	for (uint32_t n = 0; n < genuine; n++) {
		struct pollfd wanted = {.fd = listener, .events = POLLIN};
		int accepted;

		if (!answers[n])
			continue;
		put_segment(friend, (uint16_t)(FIRST + n), 1001, answers[n] + 1, ACK, NULL);
		if (poll(&wanted, 1, 10000) != 1)
			break;
		accepted = accept(listener, NULL, NULL);
		if (accepted < 0)
			break;
		printf("%s%u", made++ ? ", " : "", FIRST + n);
	}
	printf("]\n");
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	return 0;
}
