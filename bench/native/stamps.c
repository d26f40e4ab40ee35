/*
 * A million connections through a wire that loses, delays, doubles and replays SYNs, and what each
 * of them is said to be by the kernel state of its two ends and by the bytes on the wire, compared
 * one by one.
 *
 * stamps NEAR FAR AGENT CONNECTIONS OUTSTANDING SECONDS: ends after CONNECTIONS or SECONDS. NEAR
 * and FAR are network namespaces, joined by veth0 at both ends; AGENT is the process ID of the
 * agent whose `connections` map is read.
 *
 * Three threads. The client connects, each pair of ports twice, the second time right after the
 * first, so that old SYNs meet new connections. The server resets what it accepts. The wire takes
 * every SYN and SYN-ACK off the end where it arrives (where nftables drops those that the wire has
 * not marked) and carries it, or does not.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <linux/tcp.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "program.h"

#include "mesh_abi.h"

#define PORT 9001
#define SIGNED_PORT 9002 /* connections with TCP MD5 signatures: no room for a stamp */
#define FIRST_PORT 1024
#define PORTS 62500	/* of each source address */
#define FIRST_SOURCE 16 /* 10.77.0.16 and fd77::10, and those after it */
#define NEARBY 2	/* the server's address that is in the agent's scope, */
#define ELSEWHERE 3	/* and the one that is not */
#define CARRIED 0xb8	/* the traffic class of SYNs that the wire let through */
#define SIGNED_EVERY 100
#define ELSEWHERE_EVERY 101

#define MAX_FRAME 128
#define SLOTS 4096 /* of 1 ms: how long the wire may keep a SYN */

/* What the wire does, of 1000 SYNs. */
#define LOST 20
#define DELAYED 100
#define DELAYED_LONG 5 /* past its own retransmission */
#define DOUBLED 100
#define DOUBLED_LONG 20 /* into the time of the next connection with its ports */
#define REPLAYED 50	/* the SYN of the connection before, right behind that of the next */
/* And of 1000 SYN-ACKs. */
#define ANSWERS_LOST 5
#define ANSWERS_DELAYED 200 /* so that a SYN may come while they are on their way */

struct id {
	uint8_t bytes[16];
};

struct frame {
	struct frame *next;
	int out; /* where it is going */
	uint32_t length;
	uint8_t bytes[MAX_FRAME];
};

struct seen {
	uint32_t isn;
	uint16_t syns;
	uint8_t stamped, room, changed;
	struct id id;
};

static const struct id unknown;
static int near_ns, far_ns, storage, value_size, id_offset;
static uint32_t connections, tuples, outstanding, seconds;
static struct id *of_client, *of_server;
static struct seen *on_wire;
static struct frame *first_syns;
static uint8_t *accepted;
static uint64_t syns, lost, delayed, doubled, replayed, answers, answers_lost, answers_delayed,
	strangers, overrun, client_failed;
static volatile bool finished;
static pthread_barrier_t ready;

/* Tuples */

static bool is_ipv6(uint32_t tuple)
{
	return tuple & 1;
}

static bool is_signed(uint32_t tuple)
{
	return (tuple >> 1) % SIGNED_EVERY == 7;
}

static bool is_elsewhere(uint32_t tuple)
{
	return (tuple >> 1) % ELSEWHERE_EVERY == 11;
}

static socklen_t address(struct sockaddr_storage *made, bool ipv6, uint8_t host, uint16_t port)
{
	struct sockaddr_in *four = (void *)made;
	struct sockaddr_in6 *six = (void *)made;

	memset(made, 0, sizeof(*made));
	if (!ipv6) {
		four->sin_family = AF_INET;
		four->sin_port = htons(port);
		four->sin_addr.s_addr = htonl(0x0a4d0000 | host);
		return sizeof(*four);
	}
	six->sin6_family = AF_INET6;
	six->sin6_port = htons(port);
	six->sin6_addr = (struct in6_addr){{{0xfd, 0x77}}};
	six->sin6_addr.s6_addr[15] = host;
	return sizeof(*six);
}

static void source_of(uint32_t tuple, uint8_t *host, uint16_t *port)
{
	*host = FIRST_SOURCE + (tuple >> 1) / PORTS;
	*port = FIRST_PORT + (tuple >> 1) % PORTS;
}

static bool tuple_of(bool ipv6, uint8_t host, uint16_t port, uint32_t *tuple)
{
	if (host < FIRST_SOURCE || port < FIRST_PORT || port >= FIRST_PORT + PORTS)
		return false;
	*tuple = ((host - FIRST_SOURCE) * PORTS + (port - FIRST_PORT)) << 1 | ipv6;
	return *tuple < tuples;
}

static int sign(int fd, bool ipv6, uint8_t host, uint8_t prefix)
{
	struct tcp_md5sig key = {.tcpm_keylen = 4, .tcpm_key = "mesh"};

	address((struct sockaddr_storage *)&key.tcpm_addr, ipv6, host, 0);
	key.tcpm_prefixlen = prefix;
	key.tcpm_flags = TCP_MD5SIG_FLAG_PREFIX;
	return setsockopt(fd, IPPROTO_TCP, TCP_MD5SIG_EXT, &key, sizeof(key));
}

/* The kernel's state of a socket */

static void open_storage(const char *agent)
{
	struct bpf_map_info info = {};
	unsigned int length = sizeof(info), type, map, found = 0;
	const struct btf_type *value;
	char path[300], line[200];
	struct dirent *entry;
	struct btf *btf;
	DIR *directory;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%s/fdinfo", agent);
	directory = opendir(path);
	if (!directory)
		die(path);
	while (!found && (entry = readdir(directory))) {
		snprintf(path, sizeof(path), "/proc/%s/fdinfo/%s", agent, entry->d_name);
		file = fopen(path, "r");
		if (!file)
			continue;
		type = map = 0;
		while (fgets(line, sizeof(line), file)) {
			sscanf(line, "map_type: %u", &type);
			sscanf(line, "map_id: %u", &map);
		}
		fclose(file);
		if (type == BPF_MAP_TYPE_SK_STORAGE)
			found = map;
	}
	closedir(directory);
	storage = check(bpf_map_get_fd_by_id(found), "the agent's socket storage");
	check(bpf_obj_get_info_by_fd(storage, &info, &length), "the map's description");
	value_size = info.value_size;
	btf = btf__load_from_kernel_by_id(info.btf_id);
	if (!btf)
		die("the map's BTF");
	value = btf__type_by_id(btf, info.btf_value_type_id);
	id_offset = -1;
	for (int i = 0; i < btf_vlen(value); i++)
		if (!strcmp(btf__name_by_offset(btf, btf_members(value)[i].name_off), "trace_id"))
			id_offset = btf_member_bit_offset(value, i) / 8;
	btf__free(btf);
	if (id_offset < 0)
		die("the member trace_id");
}

static void read_id(int fd, struct id *id)
{
	uint8_t value[4096];

	if (bpf_map_lookup_elem(storage, &fd, value))
		*id = unknown;
	else
		memcpy(id, value + id_offset, sizeof(*id));
}

/* The server */

static int listener(bool ipv6, uint16_t port)
{
	struct linger linger = {.l_onoff = 1};
	struct sockaddr_storage any;
	int fd, one = 1;
	socklen_t length = address(&any, ipv6, 0, port);

	if (ipv6)
		((struct sockaddr_in6 *)&any)->sin6_addr = in6addr_any;
	else
		((struct sockaddr_in *)&any)->sin_addr.s_addr = INADDR_ANY;
	fd = check(socket(any.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (ipv6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	/* What is accepted has it too: its close is a reset, which keeps no port. */
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	if (port == SIGNED_PORT)
		check(sign(fd, ipv6, 0, ipv6 ? 64 : 24), "a key for the listener");
	check(bind(fd, (void *)&any, length), "bind");
	check(listen(fd, 65535), "listen");
	return fd;
}

static void take(int fd)
{
	struct sockaddr_storage from;
	socklen_t length = sizeof(from);
	bool known;
	uint32_t tuple;
	int made;

	made = accept4(fd, (void *)&from, &length, SOCK_NONBLOCK);
	if (made < 0)
		return;
	if (from.ss_family == AF_INET6) {
		struct sockaddr_in6 *six = (void *)&from;

		known = tuple_of(true, six->sin6_addr.s6_addr[15], ntohs(six->sin6_port), &tuple);
	} else {
		struct sockaddr_in *four = (void *)&from;

		known = tuple_of(
			false, ntohl(four->sin_addr.s_addr) & 0xff, ntohs(four->sin_port), &tuple);
	}
	if (known && accepted[tuple] < 2)
		read_id(made, &of_server[2 * tuple + accepted[tuple]++]);
	else
		__sync_fetch_and_add(&strangers, 1);
	close(made);
}

static void *serve(void *unused)
{
	int epoll = epoll_create1(0), fds[4], found;
	struct epoll_event events[4];

	check(setns(far_ns, CLONE_NEWNET), "setns");
	for (int i = 0; i < 4; i++) {
		struct epoll_event event = {.events = EPOLLIN};

		event.data.fd = fds[i] = listener(i & 1, i < 2 ? PORT : SIGNED_PORT);
		epoll_ctl(epoll, EPOLL_CTL_ADD, fds[i], &event);
	}
	pthread_barrier_wait(&ready);
	while (!finished) {
		found = epoll_wait(epoll, events, 4, 100);
		for (int i = 0; i < found; i++)
			for (int burst = 0; burst < 64; burst++)
				take(events[i].data.fd);
	}
	return unused;
}

/* The wire */

static struct frame *slots[SLOTS], *spare;

static void carry(const struct frame *frame)
{
	if (send(frame->out, frame->bytes, frame->length, 0) < 0 && errno != ENOBUFS)
		die("carrying a segment");
}

static void keep(const struct frame *frame, uint64_t until_ms)
{
	struct frame *copy = spare ? spare : malloc(sizeof(*copy));

	if (spare)
		spare = spare->next;
	memcpy(copy, frame, sizeof(*copy));
	copy->next = slots[until_ms % SLOTS];
	slots[until_ms % SLOTS] = copy;
}

/* Marks a SYN as carried. The traffic class is in no checksum but IPv4's own (RFC 1624). */
static void mark(struct frame *frame, bool ipv6)
{
	uint8_t *ip = frame->bytes + ETH_HLEN;
	uint32_t sum;
	uint16_t old;

	if (ipv6) {
		ip[0] |= CARRIED >> 4;
		ip[1] |= (CARRIED & 0xf) << 4;
		return;
	}
	memcpy(&old, ip, 2);
	ip[1] = CARRIED;
	memcpy(&sum, ip + 10, 2);
	sum = (~(sum & 0xffff) & 0xffff) + (~old & 0xffff) + (ip[0] | ip[1] << 8);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~((sum & 0xffff) + (sum >> 16));
	memcpy(ip + 10, &sum, 2);
}

/* Notes what a SYN says. Returns its tuple, or -1, and whether it is the second connection's. */
static int64_t witness(const struct frame *frame, bool ipv6, bool *second)
{
	const uint8_t *ip = frame->bytes + ETH_HLEN, *tcp = ip + (ipv6 ? 40 : 20);
	uint32_t tuple, isn, end = (tcp[12] >> 4) * 4, at = 20;
	uint16_t port = tcp[0] << 8 | tcp[1];
	const uint8_t *stamp = NULL;
	struct seen *seen;

	if (!tuple_of(ipv6, ip[ipv6 ? 23 : 15], port, &tuple)) {
		__sync_fetch_and_add(&strangers, 1);
		return -1;
	}
	memcpy(&isn, tcp + 4, 4);
	seen = &on_wire[2 * tuple];
	if (seen->syns && seen->isn != isn)
		seen++;
	*second = seen != &on_wire[2 * tuple];
	while (at < end && tcp[at]) {
		if (tcp[at] == 1) {
			at++;
			continue;
		}
		if (tcp[at] == MESH_STAMP_KIND && tcp[at + 1] == MESH_STAMP_LENGTH &&
			tcp[at + 2] == 'M' && tcp[at + 3] == 'A')
			stamp = tcp + at + 4;
		if (tcp[at + 1] < 2)
			break;
		at += tcp[at + 1];
	}
	if (!seen->syns++) {
		seen->isn = isn;
		seen->stamped = stamp != NULL;
		seen->room = stamp || end - 20 + MESH_STAMP_LENGTH <= 40;
		if (stamp)
			memcpy(&seen->id, stamp, sizeof(seen->id));
	} else if (seen->isn != isn || seen->stamped != (stamp != NULL) ||
		   (stamp && memcmp(&seen->id, stamp, sizeof(seen->id)))) {
		seen->changed = 1;
	}
	return tuple;
}

static void on_syn(struct frame *frame, bool ipv6, uint64_t ms)
{
	uint32_t fate = random_below(1000);
	bool second;
	int64_t tuple;

	syns++;
	tuple = witness(frame, ipv6, &second);
	mark(frame, ipv6);
	if (random_below(1000) < DOUBLED) {
		doubled++;
		keep(frame, ms + 1 + random_below(30));
	}
	if (random_below(1000) < DOUBLED_LONG) {
		doubled++;
		keep(frame, ms + 1 + random_below(SLOTS - 2));
	}
	if (fate < LOST) {
		lost++;
	} else if (fate < LOST + DELAYED) {
		delayed++;
		keep(frame, ms + 1 + random_below(20));
	} else if (fate < LOST + DELAYED + DELAYED_LONG) {
		delayed++;
		keep(frame, ms + 900 + random_below(2000));
	} else {
		carry(frame);
		if (tuple >= 0 && second && random_below(1000) < REPLAYED) {
			replayed++;
			carry(&first_syns[tuple]);
		}
	}
	if (tuple >= 0 && !second)
		first_syns[tuple] = *frame;
}

static void on_answer(struct frame *frame, bool ipv6, uint64_t ms)
{
	uint32_t fate = random_below(1000);

	answers++;
	mark(frame, ipv6);
	if (fate < ANSWERS_LOST) {
		answers_lost++;
	} else if (fate < ANSWERS_LOST + ANSWERS_DELAYED) {
		answers_delayed++;
		keep(frame, ms + 1 + random_below(20));
	} else {
		carry(frame);
	}
}

static void on_frame(struct frame *frame, uint64_t ms)
{
	bool ipv6 = frame->bytes[12] == 0x86;
	const uint8_t *ip = frame->bytes + ETH_HLEN;
	uint8_t class = ipv6 ? (ip[0] & 0xf) << 4 | ip[1] >> 4 : ip[1];

	if (class == CARRIED)
		return;
	if (ip[(ipv6 ? 40 : 20) + 13] & 0x10)
		on_answer(frame, ipv6, ms);
	else
		on_syn(frame, ipv6, ms);
}

static int packets(int ns, uint16_t protocol)
{
	struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(protocol)};
	int fd;

	check(setns(ns, CLONE_NEWNET), "setns");
	fd = check(socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0), "a packet socket");
	at.sll_ifindex = if_nametoindex("veth0");
	check(bind(fd, (void *)&at, sizeof(at)), "bind a packet socket");
	return fd;
}

/* Where segments that have these of the flags SYN and ACK are taken off an end. */
static int arrivals(int ns, uint8_t flags)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 12),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETHERTYPE_IP, 0, 4),
		BPF_STMT(BPF_LD | BPF_B | BPF_ABS, ETH_HLEN + 9),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_TCP, 0, 8),
		BPF_STMT(BPF_LD | BPF_B | BPF_ABS, ETH_HLEN + 20 + 13),
		BPF_JUMP(BPF_JMP | BPF_JA, 4, 0, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETHERTYPE_IPV6, 0, 5),
		BPF_STMT(BPF_LD | BPF_B | BPF_ABS, ETH_HLEN + 6),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_TCP, 0, 3),
		BPF_STMT(BPF_LD | BPF_B | BPF_ABS, ETH_HLEN + 40 + 13),
		BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0x12),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, flags, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, 0),
		BPF_STMT(BPF_RET | BPF_K, MAX_FRAME),
	};
	struct sock_fprog filter = {sizeof(code) / sizeof(code[0]), code};
	int fd = packets(ns, ETH_P_ALL), one = 1, size = 256 << 20;

	check(setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one)), "ignore");
	check(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)), "filter");
	check(setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)), "buffer");
	return fd;
}

static void *wire(void *unused)
{
	struct pollfd in[2] = {
		{arrivals(far_ns, 0x02), POLLIN, 0}, {arrivals(near_ns, 0x12), POLLIN, 0}};
	int out[2] = {packets(near_ns, 0), packets(far_ns, 0)};
	uint64_t ms = now_ns() / 1000000, now;
	struct tpacket_stats statistics;
	socklen_t length = sizeof(statistics);
	struct frame frame = {};
	ssize_t got;

	pthread_barrier_wait(&ready);
	while (!finished) {
		poll(in, 2, 1);
		for (int way = 0; way < 2; way++) {
			frame.out = out[way];
			for (int burst = 0; burst < 32; burst++) {
				got = recv(in[way].fd, frame.bytes, MAX_FRAME, 0);
				if (got <= 0)
					break;
				frame.length = got;
				on_frame(&frame, ms);
			}
		}
		for (now = now_ns() / 1000000; ms < now;) {
			struct frame *due = slots[++ms % SLOTS], *next;

			slots[ms % SLOTS] = NULL;
			for (; due; due = next) {
				next = due->next;
				carry(due);
				due->next = spare;
				spare = due;
			}
		}
	}
	for (int way = 0; way < 2; way++) {
		check(getsockopt(in[way].fd, SOL_PACKET, PACKET_STATISTICS, &statistics, &length),
			"statistics");
		overrun += statistics.tp_drops;
	}
	return unused;
}

/* The client */

static void start(int epoll, uint32_t number)
{
	uint32_t tuple = number / 2;
	bool ipv6 = is_ipv6(tuple);
	uint8_t host, to = is_elsewhere(tuple) ? ELSEWHERE : NEARBY;
	struct sockaddr_storage from, destination;
	struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP};
	uint16_t port;
	int fd, one = 1;

	source_of(tuple, &host, &port);
	fd = check(socket(ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (is_signed(tuple))
		check(sign(fd, ipv6, to, ipv6 ? 128 : 32), "a key for the client");
	check(bind(fd, (void *)&from, address(&from, ipv6, host, port)), "bind a client");
	one = connect(fd, (void *)&destination,
		address(&destination, ipv6, to, is_signed(tuple) ? SIGNED_PORT : PORT));
	if (one && errno != EINPROGRESS)
		die("connect");
	event.data.u64 = (uint64_t)number << 32 | fd;
	check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "epoll");
}

static void *call(void *unused)
{
	struct epoll_event events[256];
	uint32_t begun = 0, ended = 0;
	int epoll = epoll_create1(0), found;
	uint64_t progress = now_ns(), deadline = progress + seconds * 1000000000ull;

	check(setns(near_ns, CLONE_NEWNET), "setns");
	pthread_barrier_wait(&ready);
	while (begun < tuples && begun < outstanding)
		start(epoll, 2 * begun++);
	while (ended < 2 * begun) {
		found = epoll_wait(epoll, events, 256, 1000);
		if (found)
			progress = now_ns();
		else if (now_ns() - progress > 70 * 1000000000ull)
			break; /* what is left is counted as missing */
		for (int i = 0; i < found; i++) {
			uint32_t number = events[i].data.u64 >> 32;
			int fd = (uint32_t)events[i].data.u64, error = 0;
			socklen_t length = sizeof(error);

			getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
			if (error != ECONNRESET)
				client_failed++;
			read_id(fd, &of_client[number]);
			close(fd);
			ended++;
			if (!(number & 1))
				start(epoll, number + 1);
			else if (begun < tuples && now_ns() < deadline)
				start(epoll, 2 * begun++);
		}
	}
	connections = 2 * begun;
	return unused;
}

/* The verdict */

#define SAY(figure) printf(", \"" #figure "\": %lu", (unsigned long)(figure))

static int compare(const void *one, const void *other)
{
	return memcmp(one, other, sizeof(struct id));
}

static void judge(double took)
{
	uint64_t had_room = 0, right = 0, wrong = 0, missing = 0, stamped = 0, no_room = 0,
		 elsewhere = 0, from_nowhere = 0, not_accepted = 0, unstable = 0, unseen = 0,
		 received = 0, repeated = 0, ipv6 = 0, retransmitted = 0, client_differs = 0;

	for (uint32_t number = 0; number < connections; number++) {
		const struct id *client = &of_client[number], *server = &of_server[number];
		const struct seen *seen = &on_wire[number];
		uint32_t tuple = number / 2;
		bool told = memcmp(server, &unknown, sizeof(*server)) != 0;

		ipv6 += is_ipv6(tuple);
		not_accepted += accepted[tuple] <= (number & 1);
		unseen += !seen->syns;
		unstable += seen->changed;
		retransmitted += seen->syns > 1;
		received += told;
		stamped += seen->stamped;
		client_differs += seen->stamped && memcmp(client, &seen->id, sizeof(*client));
		if (is_elsewhere(tuple)) {
			elsewhere++;
			from_nowhere += told || seen->stamped;
		} else if (!seen->room) {
			no_room++;
			from_nowhere += told || seen->stamped;
		} else {
			had_room++;
			if (!told)
				missing++;
			else if (memcmp(server, client, sizeof(*server)) ||
				 memcmp(server, &seen->id, sizeof(*server)))
				wrong++;
			else
				right++;
		}
	}
	qsort(of_client, connections, sizeof(struct id), compare);
	for (uint32_t number = 1; number < connections; number++)
		repeated += !compare(&of_client[number - 1], &of_client[number]);
	printf("{\"seconds\": %.3f", took);
	SAY(connections);
	SAY(ipv6);
	SAY(had_room);
	SAY(right);
	SAY(wrong);
	SAY(missing);
	SAY(stamped);
	SAY(received);
	SAY(no_room);
	SAY(elsewhere);
	SAY(from_nowhere);
	SAY(client_differs);
	SAY(unstable);
	SAY(repeated);
	SAY(not_accepted);
	SAY(unseen);
	SAY(client_failed);
	SAY(strangers);
	SAY(overrun);
	SAY(retransmitted);
	SAY(syns);
	SAY(lost);
	SAY(delayed);
	SAY(doubled);
	SAY(replayed);
	SAY(answers);
	SAY(answers_lost);
	SAY(answers_delayed);
	printf("}\n");
}

int main(int argc, char **argv)
{
	pthread_t client, server, carrier;
	uint64_t began;

	if (argc != 7) {
		fprintf(stderr, "usage: stamps NEAR FAR AGENT CONNECTIONS OUTSTANDING SECONDS\n");
		return 2;
	}
	near_ns = check(open(argv[1], O_RDONLY | O_CLOEXEC), argv[1]);
	far_ns = check(open(argv[2], O_RDONLY | O_CLOEXEC), argv[2]);
	open_storage(argv[3]);
	connections = strtoul(argv[4], NULL, 10) & ~3u;
	tuples = connections / 2;
	outstanding = strtoul(argv[5], NULL, 10);
	seconds = strtoul(argv[6], NULL, 10);
	of_client = calloc(connections, sizeof(*of_client));
	of_server = calloc(connections, sizeof(*of_server));
	on_wire = calloc(connections, sizeof(*on_wire));
	accepted = calloc(tuples, 1);
	first_syns = calloc(tuples, sizeof(*first_syns));
	if (value_size > 4096 || !of_client || !of_server || !on_wire || !accepted || !first_syns)
		die("memory");
	pthread_barrier_init(&ready, NULL, 3);
	began = now_ns();
	pthread_create(&server, NULL, serve, NULL);
	pthread_create(&carrier, NULL, wire, NULL);
	pthread_create(&client, NULL, call, NULL);
	pthread_join(client, NULL);
	began = now_ns() - began;
	finished = true;
	pthread_join(server, NULL);
	pthread_join(carrier, NULL);
	judge(began / 1e9);
	return 0;
}
