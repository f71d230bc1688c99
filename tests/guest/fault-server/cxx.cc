// Ways in which a C++ program ends itself.
#include "faults.h"

#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

void terminate() { std::terminate(); }

void uncaught() { throw std::runtime_error("nobody catches this"); }

void refuse() noexcept { std::vector<int>().at(7); }

struct Throwing {
    ~Throwing() noexcept(false) { throw std::logic_error("in a destructor"); }
};
void destructor()
{
    Throwing throwing;
    throw std::runtime_error("while another is on its way");
}

struct Base {
    Base() { call(); }
    virtual ~Base() = default;
    void call() { act(); }
    virtual void act() = 0;
};
struct Derived : Base {
    void act() override {}
};
void pure_virtual() { Derived derived; }

void rethrow_nothing() { throw; }

// Caught, as usual; then a fault with the unwinder's caches filled.
void caught()
{
    try {
        std::string("x").at(9);
    } catch (const std::out_of_range &) {
        *(volatile int *)24 = 1;
    }
}

} // namespace

extern "C" const struct fault cxx_faults[] = {
    {"cxx-terminate", terminate},
    {"cxx-uncaught", uncaught},
    {"cxx-noexcept", refuse},
    {"cxx-destructor", destructor},
    {"cxx-pure-virtual", pure_virtual},
    {"cxx-rethrow", rethrow_nothing},
    {"cxx-caught", caught},
    {nullptr, nullptr},
};
