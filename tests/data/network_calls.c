/* Preloaded into a process: appends each name that it looks up, and each address beyond this machine that it connects
   or sends to, to the file that PALISADE_TEST_CALLS names. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *call, const char *target) {
  const char *path = getenv("PALISADE_TEST_CALLS");
  FILE *file = path ? fopen(path, "a") : NULL;
  if (file == NULL) return;
  fprintf(file, "%s %s\n", call, target ? target : "-");
  fclose(file);
}

static void note_address(const char *call, const struct sockaddr *address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address == NULL) return;
  if (address->sa_family == AF_INET)
    inet_ntop(AF_INET, &((const struct sockaddr_in *)address)->sin_addr, text, sizeof text);
  else if (address->sa_family == AF_INET6)
    inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)address)->sin6_addr, text, sizeof text);
  else
    return; /* of this machine by its kind */
  note(call, text);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
  note("getaddrinfo", node);
  return REAL(getaddrinfo)(node, service, hints, found);
}

struct hostent *gethostbyname(const char *name) {
  note("gethostbyname", name);
  return REAL(gethostbyname)(name);
}

struct hostent *gethostbyname2(const char *name, int family) {
  note("gethostbyname2", name);
  return REAL(gethostbyname2)(name, family);
}

int gethostbyname_r(const char *name, struct hostent *host, char *buffer, size_t length, struct hostent **found,
                    int *error) {
  note("gethostbyname_r", name);
  return REAL(gethostbyname_r)(name, host, buffer, length, found, error);
}

int connect(int socket, const struct sockaddr *address, socklen_t length) {
  note_address("connect", address);
  return REAL(connect)(socket, address, length);
}

ssize_t sendto(int socket, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length) {
  note_address("sendto", address);
  return REAL(sendto)(socket, data, size, flags, address, length);
}
