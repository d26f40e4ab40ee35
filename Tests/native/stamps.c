/*
 * stamps SEED INPUTS CORPUS AGENT: SYNs whose options lie, through a TUN device to a real
 * listener, and what the kernel side has read of each, compared with a second parser.
 *
 * A packet that is written to a TUN device has been through the whole of TCP when write() returns.
 * So each is judged by itself: if the map `stamps` has an entry for it, that is the trace ID that
 * the options hold by the letter of RFC 9293 and 6994; a SYN that is well-formed but for its
 * options must have one if they hold one; and nothing else is ever in the map.
 *
 * The device fuzz0 is there (with addresses 10.78.0.1/16 and fd78::1/64), and the agent's scope is
 * 10.78.0.0/17 and fd78::/65. CORPUS has TCP options, a file each;
 * AGENT is the process whose map is read.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "fuzz.h"

#define PORT 9001
#define MOST_OPTIONS 40
#define SYN 0x02
/*
 * Of longer segments TCP checks the sum behind the hook (CHECKSUM_BREAK in linux/skbuff.h). What
 * comes of one that was damaged goes with the connection that it does not make.
 */
#define CHECKED_BEFORE 76
#define SO_NETNS_COOKIE_ 71 /* linux/socket.h, since 5.14; Debian 12's libc has no name for it */

struct key {
	struct mesh_tuple tuple;
	uint32_t sequence, pad;
};

static int tun, stamps;
static uint64_t netns;
static struct {
	uint64_t inputs, well_formed, stamped, read, out_of_scope, fragmented, extended;
} tally;

/* The trace ID that options hold, if they do. Walks them front to back, as a reader of RFC 9293
 * would. */
static bool reference(const uint8_t *options, uint32_t length, uint8_t *id)
{
	uint32_t at = 0;

	while (at < length) {
		uint32_t size;

		if (options[at] == 0)
			return false;
		if (options[at] == 1) {
			at++;
			continue;
		}
		if (length - at < 2)
			return false;
		size = options[at + 1];
		if (size < 2 || size > length - at)
			return false;
		if (options[at] == 254 && size == 20 && !memcmp(&options[at + 2], "MA", 2)) {
			memcpy(id, &options[at + 4], 16);
			return true;
		}
		at += size;
	}
	return false;
}

/*
 * Whether TCP takes a SYN with such options at all. It drops those with signatures that it has no
 * key for (RFC 2385, 5925), and newer kernels those in which a length lies.
 */
static bool is_taken(const uint8_t *options, uint32_t length)
{
	uint32_t at = 0;

	while (at < length && options[at] != 0) {
		if (options[at] == 1) {
			at++;
			continue;
		}
		if (length - at < 2 || options[at + 1] < 2 || options[at + 1] > length - at ||
			options[at] == 19 || options[at] == 29)
			return false;
		at += options[at + 1];
	}
	return true;
}

/* Writes a packet. Of one larger than a page only the header part is not in pages of its own. */
static void deliver(const uint8_t *packet, uint32_t length, uint32_t header_part)
{
	struct virtio_net_hdr header = {
		.hdr_len = (uint16_t)(header_part < length ? header_part : length)};
	uint8_t whole[sizeof(header) + 8192];

	memcpy(whole, &header, sizeof(header));
	memcpy(whole + sizeof(header), packet, length);
	/* What is no IP packet at all is refused here. */
	if (write(tun, whole, sizeof(header) + length) < 0 && errno != EINVAL)
		die("write to fuzz0");
}

struct syn {
	bool v6, well_formed, in_scope;
	struct key key;
	uint8_t tcp[60 + 4400];
	uint32_t tcp_length, options_length;
	uint8_t source[16], destination[16];
	uint32_t extra, parts; /* bytes of IP options or extension headers, fragments */
};

static void make_syn(struct syn *syn, const struct input *options)
{
	uint32_t length = options->length, pad = (4 - length % 4) % 4, header = 20 + length + pad;
	uint32_t payload = one_in(16)	? random_below(1400)
			   : one_in(64) ? 4096 + random_below(300)
					: 0;
	uint16_t port = (uint16_t)random_bits();
	uint32_t sequence = (uint32_t)random_bits();

	memset(syn, 0, sizeof(*syn));
	syn->well_formed = true;
	syn->v6 = one_in(2);
	syn->in_scope = !one_in(8);
	if (syn->v6) {
		memcpy(syn->source, "\xfd\x78\0\0\0\0\0\0", 8);
		put32(&syn->source[8], (uint32_t)random_bits() & 0x7fffffff);
		put32(&syn->source[12], (uint32_t)random_bits() | 2);
		if (!syn->in_scope)
			syn->source[8] |= 0x80;
		memcpy(syn->destination, "\xfd\x78\0\0\0\0\0\0\0\0\0\0\0\0\0\1", 16);
		memcpy(syn->key.tuple.remote_address, syn->source, 16);
		memcpy(syn->key.tuple.local_address, syn->destination, 16);
	} else {
		syn->source[0] = 10, syn->source[1] = 78;
		syn->source[2] = (uint8_t)random_below(128);
		syn->source[3] = (uint8_t)(2 + random_below(250));
		if (!syn->in_scope)
			syn->source[2] |= 0x80;
		memcpy(syn->destination, "\x0a\x4e\0\1", 4);
		memset(&syn->key.tuple.remote_address[10], 0xff, 2);
		memset(&syn->key.tuple.local_address[10], 0xff, 2);
		memcpy(&syn->key.tuple.remote_address[12], syn->source, 4);
		memcpy(&syn->key.tuple.local_address[12], syn->destination, 4);
	}
	if (!port)
		port = 1;
	syn->key.tuple.remote_port = port;
	syn->key.tuple.local_port = PORT;
	syn->key.tuple.netns = netns;
	syn->key.sequence = sequence;

	put16(syn->tcp, port);
	put16(syn->tcp + 2, PORT);
	put32(syn->tcp + 4, sequence);
	syn->tcp[12] = (uint8_t)(header / 4 << 4);
	syn->tcp[13] = SYN;
	put16(syn->tcp + 14, 64240);
	memcpy(syn->tcp + 20, options->bytes, length);
	/* Ends of options, or whatever: RFC 9293 wants zeros there, and nobody checks. */
	for (uint32_t i = 0; i < pad; i++)
		syn->tcp[20 + length + i] = one_in(2) ? 0 : (uint8_t)random_bits();
	syn->options_length = length + pad;
	if (!is_taken(syn->tcp + 20, length + pad))
		syn->well_formed = false;
	for (uint32_t i = 0; i < payload; i++)
		syn->tcp[header + i] = (uint8_t)i;
	syn->tcp_length = header + payload;
	if (one_in(32)) {
		/* A header that is longer or shorter than it says. */
		uint32_t words = random_below(16);

		syn->tcp[12] = (uint8_t)(words << 4);
		syn->options_length = words > 5 ? words * 4 - 20 : 0;
		if (20 + syn->options_length > syn->tcp_length)
			syn->options_length = 0;
		syn->well_formed = false;
	}
	if (one_in(64)) { /* ECN, PSH and URG change nothing; ACK, FIN and RST make it something
			     else */
		syn->tcp[13] |= (uint8_t)random_bits();
		syn->well_formed = false;
	}
	if (one_in(64)) {
		syn->tcp_length = random_below(syn->tcp_length + 1);
		syn->well_formed = false;
		if (20 + syn->options_length > syn->tcp_length)
			syn->options_length = 0;
	}
}

static void seal(struct syn *syn)
{
	uint32_t sum = IPPROTO_TCP + syn->tcp_length, size = syn->v6 ? 16 : 4;

	if (syn->tcp_length < 18)
		return;
	put16(syn->tcp + 16, 0);
	sum = add_words(sum, syn->source, size);
	sum = add_words(sum, syn->destination, size);
	put16(syn->tcp + 16, fold(add_words(sum, syn->tcp, syn->tcp_length)));
	if (syn->tcp_length <= CHECKED_BEFORE && one_in(64)) {
		syn->tcp[16] ^= 0x5a;
		syn->well_formed = false;
		syn->options_length = 0; /* nothing of it may be believed */
	}
}

/* IPv4, with options of its own and in fragments. */
static void send_v4(struct syn *syn)
{
	uint8_t packet[8192];
	uint32_t extra = one_in(8) ? 4 * (1 + random_below(10)) : 0, header = 20 + extra;
	uint32_t cuts[4] = {0}, count = 1;
	uint16_t id = (uint16_t)current;

	memset(packet, 0, header);
	packet[0] = (uint8_t)(0x40 | header / 4);
	packet[8] = 64;
	packet[9] = IPPROTO_TCP;
	memcpy(packet + 12, syn->source, 4);
	memcpy(packet + 16, syn->destination, 4);
	memset(packet + 20, 1, extra); /* no-operations (RFC 791, 3.1) */
	if (extra && one_in(2)) {
		for (uint32_t i = 20; i < header; i++)
			packet[i] = (uint8_t)random_bits();
		syn->well_formed = false;
	}
	syn->extra = extra;
	tally.extended += extra != 0;
	if (syn->tcp_length <= CHECKED_BEFORE && one_in(32)) {
		packet[random_below(header)] ^= (uint8_t)(1 << random_below(8));
		syn->well_formed = false;
	}
	if (one_in(8) && syn->tcp_length > 8) {
		cuts[count++] = 8 * (1 + random_below((syn->tcp_length - 1) / 8));
		tally.fragmented++;
	}
	cuts[count] = syn->tcp_length;
	syn->parts = count;
	for (uint32_t i = 0; i < count; i++) {
		/* The last one first, at times. */
		uint32_t n = count == 2 && (current & 1) ? 1 - i : i, size = cuts[n + 1] - cuts[n];

		if (count > 1) {
			put16(packet + 4, id);
			put16(packet + 6, cuts[n] / 8 | (n + 1 < count ? 0x2000 : 0));
		}
		put16(packet + 2, header + size);
		put16(packet + 10, 0);
		put16(packet + 10, fold(add_words(0, packet, header)));
		memcpy(packet + header, syn->tcp + cuts[n], size);
		deliver(packet, header + size, one_in(2) ? header : header + 20);
	}
}

/* IPv6, with extension headers and in fragments. */
static void send_v6(struct syn *syn)
{
	uint8_t packet[8192];
	uint32_t at = 40, headers = one_in(4) ? 1 + random_below(8) : 0;
	uint8_t *next = packet + 6;

	memset(packet, 0, 40);
	packet[0] = 0x60;
	packet[7] = 64;
	memcpy(packet + 8, syn->source, 16);
	memcpy(packet + 24, syn->destination, 16);
	for (uint32_t i = 0; i < headers; i++) {
		/* Hop-by-hop options only as the first (RFC 8200, 4.1); then destination options.
		 */
		uint8_t kind = i == 0 && one_in(2) ? IPPROTO_HOPOPTS : IPPROTO_DSTOPTS;
		uint32_t words = one_in(4) ? random_below(6) : 0, bytes = 8 + 8 * words;

		*next = kind;
		memset(packet + at, 0, bytes);
		packet[at + 1] = (uint8_t)words;
		packet[at + 2] = 1; /* PadN */
		packet[at + 3] = (uint8_t)(bytes - 4);
		/* Linux takes no more than seven bytes of padding (net/ipv6/exthdrs.c). */
		if (words)
			syn->well_formed = false;
		if (one_in(8)) {
			/* A length, a kind or an option that lies. */
			packet[at + random_below(bytes)] = (uint8_t)random_bits();
			syn->well_formed = false;
			if (one_in(2))
				*next = (uint8_t)random_bits();
		}
		next = packet + at;
		at += bytes;
	}
	/* More than six are not followed: nothing is read then. */
	if (headers > 6)
		syn->well_formed = false;
	tally.extended += headers != 0;
	syn->extra = at - 40;
	syn->parts = 1;
	*next = IPPROTO_TCP;
	if (one_in(8) && syn->tcp_length > 64 && !headers) {
		/* The first part holds the TCP header (RFC 8200, 4.5). */
		uint32_t cut = 24 + 8 * random_below((syn->tcp_length - 24) / 8);
		uint32_t parts[3] = {0, cut, syn->tcp_length};

		tally.fragmented++;
		syn->parts = 2;
		*next = IPPROTO_FRAGMENT;
		for (uint32_t i = 0; i < 2; i++) {
			uint32_t n = (current & 1) ? 1 - i : i, size = parts[n + 1] - parts[n];

			memset(packet + at, 0, 8);
			packet[at] = IPPROTO_TCP;
			put16(packet + at + 2, parts[n] | (n == 0));
			put32(packet + at + 4, (uint32_t)current);
			memcpy(packet + at + 8, syn->tcp + parts[n], size);
			put16(packet + 4, at + 8 + size - 40);
			deliver(packet, at + 8 + size, 40);
		}
		return;
	}
	memcpy(packet + at, syn->tcp, syn->tcp_length);
	put16(packet + 4, at + syn->tcp_length - 40);
	if (syn->tcp_length <= CHECKED_BEFORE && one_in(64)) {
		put16(packet + 4, (uint32_t)random_bits());
		syn->well_formed = false;
	}
	deliver(packet, at + syn->tcp_length, one_in(2) ? at : at + 20);
}

static void expect_empty(const struct syn *last)
{
	struct key left;

	if (bpf_map_get_next_key(stamps, NULL, &left))
		return;
	for (uint32_t i = 0; i < sizeof(left); i++)
		fprintf(stderr, "%02x", ((const uint8_t *)&left)[i]);
	fprintf(stderr, " is the key of a stamp that no SYN had\n");
	broken(last->tcp, last->tcp_length, "a stamp too many");
}

static void try_one(uint64_t number)
{
	uint8_t wanted[16] = {}, got[16] = {};
	struct input options;
	struct syn syn;
	bool holds, found;

	begin_input(number);
	if (number < files)
		options = corpus[number];
	else
		mutate(&options, one_in(4) ? 0 : 4, MOST_OPTIONS);
	if (options.length > MOST_OPTIONS)
		options.length = MOST_OPTIONS;
	make_syn(&syn, &options);
	seal(&syn);
	if (syn.v6)
		send_v6(&syn);
	else
		send_v4(&syn);

	holds = syn.in_scope && reference(syn.tcp + 20, syn.options_length, wanted);
	found = !bpf_map_lookup_and_delete_elem(stamps, &syn.key, got);
	tally.inputs++;
	tally.well_formed += syn.well_formed;
	tally.stamped += holds && syn.well_formed;
	tally.read += found;
	tally.out_of_scope += !syn.in_scope;
	if (found && !holds)
		broken(syn.tcp, syn.tcp_length, "a stamp was read that the SYN does not hold");
	if (found && memcmp(wanted, got, 16))
		broken(syn.tcp, syn.tcp_length, "another trace ID was read than the SYN's");
	if (!found && holds && syn.well_formed)
		broken(syn.tcp, syn.tcp_length,
			"the stamp of a well-formed SYN was not read (IPv%d, %u extra bytes, %u "
			"parts)",
			syn.v6 ? 6 : 4, syn.extra, syn.parts);
	expect_empty(&syn);
}

int main(int count, char **words)
{
	struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
	struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(PORT)};
	socklen_t size = sizeof(netns);
	uint64_t inputs;
	int listener, no = 0;

	inputs = begin(count, words, 5, "stamps SEED INPUTS CORPUS AGENT");
	stamps = map_of(words[4], "stamps");
	listener = check(socket(AF_INET6, SOCK_STREAM, 0), "socket");
	check(setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no)), "IPV6_V6ONLY");
	check(bind(listener, (struct sockaddr *)&address, sizeof(address)), "bind");
	check(listen(listener, 4096), "listen");
	check(getsockopt(listener, SOL_SOCKET, SO_NETNS_COOKIE_, &netns, &size), "SO_NETNS_COOKIE");
	tun = check(open("/dev/net/tun", O_RDWR | O_CLOEXEC), "/dev/net/tun");
	strcpy(request.ifr_name, "fuzz0");
	check(ioctl(tun, TUNSETIFF, &request), "fuzz0");

	for (uint64_t number = 0; number < inputs; number++)
		try_one(number);
	printf("{\"inputs\": %llu, \"well_formed\": %llu, \"stamped\": %llu, \"read\": %llu, "
	       "\"out_of_scope\": %llu, \"fragmented\": %llu, \"extended\": %llu}\n",
		(unsigned long long)tally.inputs, (unsigned long long)tally.well_formed,
		(unsigned long long)tally.stamped, (unsigned long long)tally.read,
		(unsigned long long)tally.out_of_scope, (unsigned long long)tally.fragmented,
		(unsigned long long)tally.extended);
	return 0;
}
