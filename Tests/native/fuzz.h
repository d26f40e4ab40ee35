/*
 * What the programs here share: an end with a message, random numbers that a seed decides, a
 * corpus, mutation, and the maps and programs of the agent under test. What these programs find
 * wrong they print, with the seed and the input, and end with status 1.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <bpf/bpf.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mesh_abi.h"

#define MOST_FILES 256
#define LONGEST_INPUT 4096

struct input {
	uint32_t length;
	uint8_t bytes[LONGEST_INPUT];
};

static uint64_t seed, current; /* the input under way */
static struct input corpus[MOST_FILES];
static uint32_t files;

__attribute__((noreturn)) static inline void die(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
	exit(1);
}

static inline int check(int result, const char *what)
{
	if (result < 0)
		die(what);
	return result;
}

/* An invariant that did not hold. */
__attribute__((noreturn, format(printf, 3, 4))) static inline void broken(
	const uint8_t *bytes, uint32_t length, const char *format, ...)
{
	va_list words;

	fprintf(stderr, "%s: SEED=%llu, input %llu: ", program_invocation_short_name,
		(unsigned long long)seed, (unsigned long long)current);
	va_start(words, format);
	vfprintf(stderr, format, words);
	fprintf(stderr, "\nthe input: ");
	for (uint32_t i = 0; i < length; i++)
		fprintf(stderr, "%02x", bytes[i]);
	fprintf(stderr, "\n");
	exit(1);
}

/* SplitMix64; each input has a sequence of its own. */
static uint64_t random_state;

static inline void begin_input(uint64_t number)
{
	current = number;
	random_state = seed * 0xd1290ddb53c43e49ull + number;
}

static inline uint64_t random_bits(void)
{
	uint64_t mixed = random_state += 0x9e3779b97f4a7c15ull;

	mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9ull;
	mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebull;
	return mixed ^ (mixed >> 31);
}

static inline uint32_t random_below(uint32_t limit)
{
	return (uint32_t)(random_bits() >> 32) % limit;
}

static inline bool one_in(uint32_t many)
{
	return random_below(many) == 0;
}

static inline int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

/* Reads the files of a directory, in the order of their names. */
static inline void read_corpus(const char *directory)
{
	struct dirent **entries;
	int count = check(scandir(directory, &entries, NULL, by_name), directory);

	for (int i = 0; i < count; i++) {
		char path[4096];
		ssize_t length;
		int fd;

		if (entries[i]->d_name[0] == '.' || files == MOST_FILES)
			continue;
		snprintf(path, sizeof(path), "%s/%s", directory, entries[i]->d_name);
		fd = check(open(path, O_RDONLY | O_CLOEXEC), path);
		length = read(fd, corpus[files].bytes, LONGEST_INPUT);
		check((int)length, path);
		corpus[files++].length = (uint32_t)length;
		close(fd);
	}
	if (!files) {
		errno = ENOENT;
		die(directory);
	}
}

/* Takes the seed and the corpus from a command line of `wanted` words, NAME SEED INPUTS CORPUS
 * first, and returns how many inputs to try. */
static inline uint64_t begin(int count, char **words, int wanted, const char *usage)
{
	if (count != wanted) {
		fprintf(stderr, "usage: %s\n", usage);
		exit(2);
	}
	seed = strtoull(words[1], NULL, 10);
	read_corpus(words[3]);
	return strtoull(words[2], NULL, 10);
}

/* One of the corpus, with up to `changes` changes and at most `most` bytes. */
static inline void mutate(struct input *input, uint32_t changes, uint32_t most)
{
	*input = corpus[random_below(files)];
	for (uint32_t n = random_below(changes + 1); n > 0; n--) {
		uint32_t place = input->length ? random_below(input->length) : 0;
		uint32_t span = random_below(6), end = place + span;

		if (end > input->length)
			end = input->length;
		switch (random_below(6)) {
		case 0:
			if (input->length)
				input->bytes[place] = (uint8_t)random_bits();
			break;
		case 1:
			if (input->length)
				input->bytes[place] ^= (uint8_t)(1 << random_below(8));
			break;
		case 2: /* a byte more */
			if (input->length < LONGEST_INPUT) {
				memmove(&input->bytes[place + 1], &input->bytes[place],
					input->length - place);
				input->bytes[place] = (uint8_t)random_bits();
				input->length++;
			}
			break;
		case 3: /* some fewer */
			memmove(&input->bytes[place], &input->bytes[end], input->length - end);
			input->length -= end - place;
			break;
		case 4: /* cut off */
			input->length = place;
			break;
		default: /* the end of another */ {
			const struct input *other = &corpus[random_below(files)];
			uint32_t from = other->length ? random_below(other->length) : 0;
			uint32_t count = other->length - from;

			if (place + count > LONGEST_INPUT)
				count = LONGEST_INPUT - place;
			memcpy(&input->bytes[place], &other->bytes[from], count);
			input->length = place + count;
		}
		}
	}
	if (input->length > most)
		input->length = most;
}

/*
 * The program of that name that an agent has attached, and the map of that name that its programs
 * share: other agents may run beside it.
 */
static inline int program_of(const char *agent, const char *name)
{
	char path[4096], line[256];
	struct dirent *entry;
	DIR *directory;

	snprintf(path, sizeof(path), "/proc/%s/fdinfo", agent);
	directory = opendir(path);
	if (!directory)
		die(path);
	while ((entry = readdir(directory))) {
		struct bpf_prog_info info = {};
		uint32_t size = sizeof(info);
		unsigned int id = 0;
		FILE *file;
		int fd;

		snprintf(path, sizeof(path), "/proc/%s/fdinfo/%s", agent, entry->d_name);
		file = fopen(path, "re");
		while (file && fgets(line, sizeof(line), file))
			sscanf(line, "prog_id:\t%u", &id);
		if (file)
			fclose(file);
		if (!id)
			continue;
		fd = check(bpf_prog_get_fd_by_id(id), "open a program of the agent's");
		check(bpf_obj_get_info_by_fd(fd, &info, &size), "look at a program of the agent's");
		if (!strncmp(info.name, name, BPF_OBJ_NAME_LEN - 1)) {
			closedir(directory);
			return fd;
		}
		close(fd);
	}
	errno = ENOENT;
	die(name);
}

static inline int map_of(const char *agent, const char *name)
{
	int program = program_of(agent, "mesh_ingress");
	uint32_t maps[64], size = sizeof(struct bpf_prog_info);
	struct bpf_prog_info info = {.nr_map_ids = 64, .map_ids = (uintptr_t)maps};

	check(bpf_obj_get_info_by_fd(program, &info, &size), "look at mesh_ingress");
	close(program);
	for (uint32_t i = 0; i < info.nr_map_ids; i++) {
		struct bpf_map_info map = {};
		int fd = check(bpf_map_get_fd_by_id(maps[i]), "open a map of the agent's");

		size = sizeof(map);
		check(bpf_obj_get_info_by_fd(fd, &map, &size), "look at a map of the agent's");
		if (!strcmp(map.name, name))
			return fd;
		close(fd);
	}
	errno = ENOENT;
	die(name);
}

static inline uint32_t add_words(uint32_t sum, const void *data, uint32_t bytes)
{
	const uint8_t *octets = data;

	for (uint32_t i = 0; i + 1 < bytes; i += 2)
		sum += (uint32_t)octets[i] << 8 | octets[i + 1];
	if (bytes & 1)
		sum += (uint32_t)octets[bytes - 1] << 8;
	return sum;
}

static inline uint16_t fold(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static inline void put16(uint8_t *to, uint32_t value)
{
	to[0] = (uint8_t)(value >> 8);
	to[1] = (uint8_t)value;
}

static inline void put32(uint8_t *to, uint32_t value)
{
	put16(to, value >> 16);
	put16(to + 2, value);
}

#endif
