/* What of libbpf cannot be called from Swift: macros, va_list, and structs that grow with it. */
#include "clibbpf.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static char log_text[CLIBBPF_LOG_SIZE];
static size_t log_length;

static int keep(enum libbpf_print_level level, const char *format, va_list arguments)
{
	if (level == LIBBPF_DEBUG)
		return 0;

	va_list again;
	va_copy(again, arguments);
	int length = vsnprintf(NULL, 0, format, again);
	va_end(again);
	/* One line may be a verifier log of megabytes, of which only the end is of use. */
	char *line = length > 0 ? malloc((size_t)length + 1) : NULL;
	if (!line)
		return 0;
	vsnprintf(line, (size_t)length + 1, format, arguments);

	size_t fresh = (size_t)length < sizeof(log_text) ? (size_t)length : sizeof(log_text);
	pthread_mutex_lock(&log_lock);
	size_t old = sizeof(log_text) - fresh;
	if (old > log_length)
		old = log_length;
	memmove(log_text, log_text + log_length - old, old);
	memcpy(log_text + old, line + length - fresh, fresh);
	log_length = old + fresh;
	pthread_mutex_unlock(&log_lock);
	free(line);
	return 0;
}

void clibbpf_capture_log(void)
{
	libbpf_set_print(keep);
}

size_t clibbpf_take_log(char *to)
{
	pthread_mutex_lock(&log_lock);
	size_t length = log_length;
	memcpy(to, log_text, length);
	log_length = 0;
	pthread_mutex_unlock(&log_lock);
	return length;
}

struct bpf_object *clibbpf_open(const void *bytes, size_t size, const char *name)
{
	LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = name);
	return bpf_object__open_mem(bytes, size, &options);
}

int clibbpf_load(enum bpf_prog_type type, enum bpf_attach_type attach, const char *name,
	const char *license, const struct bpf_insn *code, size_t count, __u32 btf_id, char *log,
	__u32 log_size)
{
	LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = attach,
		.attach_btf_id = btf_id, .log_buf = log, .log_size = log_size,
		.log_level = log_size ? 1 : 0);
	if (log_size)
		log[0] = 0;
	return bpf_prog_load(type, name, license, code, count, &options);
}

int clibbpf_create_map(enum bpf_map_type type, const char *name, __u32 key_size, __u32 value_size,
	__u32 max_entries, __u32 flags)
{
	LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = flags);
	return bpf_map_create(type, name, key_size, value_size, max_entries, &options);
}

int clibbpf_link_cgroup_iterator(int program, __u64 cgroup)
{
	union bpf_iter_link_info info = {
		.cgroup = {.order = BPF_CGROUP_ITER_SELF_ONLY, .cgroup_id = cgroup}};
	LIBBPF_OPTS(
		bpf_link_create_opts, options, .iter_info = &info, .iter_info_len = sizeof(info));
	return bpf_link_create(program, 0, BPF_TRACE_ITER, &options);
}

int clibbpf_link_map_iterator(int program, int map)
{
	union bpf_iter_link_info info = {.map = {.map_fd = map}};
	LIBBPF_OPTS(
		bpf_link_create_opts, options, .iter_info = &info, .iter_info_len = sizeof(info));
	return bpf_link_create(program, 0, BPF_TRACE_ITER, &options);
}
