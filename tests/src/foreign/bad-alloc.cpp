// Takes memory until operator new throws std::bad_alloc, which nobody catches.

#include <cstring>
#include <vector>

int main() {
    const std::size_t piece = 16 << 20;
    std::vector<char *> taken;
    for (;;) {
        taken.push_back(new char[piece]);
        std::memset(taken.back(), 1, piece);
    }
}
