/*
 * The far end of a TUN device: what is written to fuzz0 has been through the kernel's TCP when
 * write() returns, so one thread plays the network and the server. The device has 10.78.0.1/16;
 * everything goes to the port below.
 */
#ifndef TUN_H
#define TUN_H

#include <arpa/inet.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "fuzz.h"

#define PORT 9001
#define FIN 0x01
#define SYN 0x02
#define RST 0x04
#define PSH 0x08
#define ACK 0x10
#define MOST_PAYLOAD 4096

static int tun, listener;

struct segment {
	uint8_t source[4]; /* the address */
	uint16_t port;
	uint32_t sequence, acknowledged;
	uint8_t flags;
	const uint8_t *stamp; /* a trace ID, or NULL */
	const uint8_t *payload;
	uint32_t length;
	uint8_t offset;	 /* 32-bit words that the header claims to have; 0: as many as it has */
	uint16_t damage; /* to its checksum */
};

static inline void put_segment(const struct segment *segment)
{
	static const uint8_t destination[] = {10, 78, 0, 1};
	static uint8_t whole[sizeof(struct virtio_net_hdr) + 60 + MOST_PAYLOAD];
	uint8_t *ip = whole + sizeof(struct virtio_net_hdr), *tcp = ip + 20;
	uint32_t header = segment->stamp ? 40 : 20, length = header + segment->length;

	memset(whole, 0, sizeof(struct virtio_net_hdr) + 60);
	ip[0] = 0x45;
	put16(ip + 2, 20 + length);
	ip[8] = 64;
	ip[9] = IPPROTO_TCP;
	memcpy(ip + 12, segment->source, 4);
	memcpy(ip + 16, destination, 4);
	put16(ip + 10, fold(add_words(0, ip, 20)));
	put16(tcp, segment->port);
	put16(tcp + 2, PORT);
	put32(tcp + 4, segment->sequence);
	put32(tcp + 8, segment->acknowledged);
	tcp[12] = (uint8_t)((segment->offset ? segment->offset : header / 4) << 4);
	tcp[13] = segment->flags;
	put16(tcp + 14, 64240);
	if (segment->stamp) {
		memcpy(tcp + 20, "\xfe\x14MA", 4);
		memcpy(tcp + 24, segment->stamp, 16);
	}
	if (segment->length)
		memcpy(tcp + header, segment->payload, segment->length);
	put16(tcp + 16, fold(add_words(add_words(IPPROTO_TCP + length, ip + 12, 8), tcp, length)) ^
				segment->damage);
	check((int)write(tun, whole, sizeof(struct virtio_net_hdr) + 20 + length),
		"write to fuzz0");
}

/* The next TCP header that the kernel has sent, and how many bytes are there; NULL: no more. */
static inline const uint8_t *take_segment(uint32_t *length)
{
	static uint8_t packet[sizeof(struct virtio_net_hdr) + 65536];
	uint8_t *ip = packet + sizeof(struct virtio_net_hdr);
	ssize_t got;

	while ((got = read(tun, packet, sizeof(packet))) > 0) {
		if (got < (ssize_t)sizeof(struct virtio_net_hdr) + 40 || ip[0] != 0x45 ||
			ip[9] != IPPROTO_TCP)
			continue;
		*length = (uint32_t)got - sizeof(struct virtio_net_hdr) - 20;
		return ip + 20;
	}
	return NULL;
}

static inline uint32_t get32(const uint8_t *from)
{
	return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
}

/* Opens the device and a listener, and waits until what the kernel sends comes out. */
static inline void open_tun(int backlog)
{
	struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(PORT)};

	listener = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
	check(bind(listener, (struct sockaddr *)&address, sizeof(address)), "bind");
	check(listen(listener, backlog), "listen");
	tun = check(open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC), "/dev/net/tun");
	strcpy(request.ifr_name, "fuzz0");
	check(ioctl(tun, TUNSETIFF, &request), "fuzz0");
	/* Until the device has its queue, what the kernel sends there is lost. */
	do
		check(ioctl(listener, SIOCGIFFLAGS, &request), "the state of fuzz0");
	while (!(request.ifr_flags & IFF_RUNNING));
}

#endif
