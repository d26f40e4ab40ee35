/*
 * packets SEED INPUTS CORPUS AGENT: packets of any shape through the agent's own programs by
 * BPF_PROG_TEST_RUN, without a socket that is TCP's: short headers, offsets that lie, extension
 * headers, fragments, GSO, and more than the linear part holds. Each must come out as it went in,
 * let through.
 */
#define _GNU_SOURCE
#include <net/ethernet.h>
#include <netinet/in.h>

#include "fuzz.h"

static const struct {
	const char *name;
	uint32_t verdict;
} programs[] = {{"mesh_ingress", 1}, {"mesh_egress", 1}, {"mesh_tc_ingress", (uint32_t)-1},
	{"mesh_tc_egress", (uint32_t)-1}};
#define PROGRAMS (sizeof(programs) / sizeof(programs[0]))

int main(int count, char **words)
{
	struct __sk_buff context, after;
	static uint8_t packet[LONGEST_INPUT], out[2 * LONGEST_INPUT];
	uint64_t inputs, runs = 0, gso = 0, refused = 0;
	int fds[PROGRAMS];

	inputs = begin(count, words, 5, "packets SEED INPUTS CORPUS AGENT");
	for (uint32_t i = 0; i < PROGRAMS; i++)
		fds[i] = program_of(words[4], programs[i].name);
	for (uint64_t number = 0; number < inputs; number++) {
		struct input input;
		uint32_t which, unseen;

		begin_input(number);
		if (number < files)
			input = corpus[number];
		else
			mutate(&input, 6, one_in(8) ? 3500 : 200);
		/* Room for the link layer, as every packet has that comes this way. */
		while (input.length < ETHER_HDR_LEN)
			input.bytes[input.length++] = (uint8_t)random_bits();
		memcpy(packet, input.bytes, input.length);
		memset(&context, 0, sizeof(context));
		if (one_in(4)) {
			context.gso_size = random_below(2000);
			context.gso_segs = random_below(64);
			gso++;
		}
		for (which = 0; which < PROGRAMS; which++) {
			LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = packet,
				.data_size_in = input.length, .data_out = out,
				.data_size_out = sizeof(out), .ctx_in = &context,
				.ctx_size_in = sizeof(context), .ctx_out = &after,
				.ctx_size_out = sizeof(after), .repeat = 1);

			if (bpf_prog_test_run_opts(fds[which], &options)) {
				/* The kernel itself will not make such a packet. */
				if (errno != EINVAL)
					die(programs[which].name);
				refused++;
				continue;
			}
			runs++;
			if (options.retval != programs[which].verdict)
				broken(packet, input.length, "%s says %d", programs[which].name,
					(int)options.retval);
			/* A cgroup's programs have no link layer: zeros come back for it. */
			unseen = which < 2 ? ETHER_HDR_LEN : 0;
			if (options.data_size_out != input.length ||
				memcmp(out + unseen, packet + unseen, input.length - unseen))
				broken(packet, input.length, "%s has changed the packet",
					programs[which].name);
		}
	}
	printf("{\"runs\": %llu, \"gso\": %llu, \"refused\": %llu}\n", (unsigned long long)runs,
		(unsigned long long)gso, (unsigned long long)refused);
	return 0;
}
