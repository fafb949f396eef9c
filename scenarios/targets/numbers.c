/* Saves the numbers 1 to 5 in a file, one after the other, and says so in the marks file: a program of another language.
   Called with "careful" it syncs the file before it renames it and the folder after; with "careless" it does not. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void mark(int marks, const char *kind, int number)
{
    char line[128];
    int length = snprintf(line, sizeof line, "{\"kind\": \"%s\", \"operation\": \"save\", \"key\": %d}\n", kind, number);
    if (write(marks, line, length) != length)
        exit(3);
}

static void save(int number, int careful)
{
    char text[64];
    int length = snprintf(text, sizeof text, "{\"number\": %d}", number);
    int file = open("state.new", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || write(file, text, length) != length)
        exit(4);
    if (careful && fsync(file) != 0)
        exit(5);
    close(file);
    if (rename("state.new", "state.json") != 0)
        exit(6);
    int folder = open(".", O_RDONLY | O_DIRECTORY);
    if (careful && fsync(folder) != 0)
        exit(7);
    close(folder);
}

int main(int count, char **arguments)
{
    int careful = count > 1 && strcmp(arguments[1], "careful") == 0;
    int marks = open(getenv("CHAOS_MARKS"), O_WRONLY | O_APPEND);
    if (marks < 0)
        return 2;
    for (int number = 1; number <= 5; number++) {
        mark(marks, "intent", number);
        save(number, careful);
        mark(marks, "ack", number);
    }
    return 0;
}
