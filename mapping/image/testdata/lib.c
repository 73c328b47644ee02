/* A library with what matters to a memory manager: code, constants, data, zeros, and addresses in each of them. */
#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

static const char *const names[] = {"code", "constants", "data", "zeros"};
static int zeros[50000];
static int data[3000] = {1, 2, 3};
static void *addresses[] = {zeros, data, &data[1000], (void *)names};

static int one(int n) { return n + data[n % 3000]; }
static int two(int n) { return n + zeros[n % 50000]; }
static int (*functions[])(int) = {one, two, one};

EXPORT int count(int n) { return functions[n % 3](n) + (addresses[n % 4] == names) + names[n % 4][0]; }

int _DllMainCRTStartup(void *module, unsigned reason, void *reserved) { return module && reason && !reserved; }
