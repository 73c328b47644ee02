package heap

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
)

const fakePage = 0x1000

// fakeSpace is an address space in memory that checks what a heap does with it: reservations at multiples of 64 KiB,
// commits inside one reservation, and no access to what is not committed.
type fakeSpace struct {
	ptr   uint64
	limit uint64 // bytes that may be committed, 0 for any

	mu sync.Mutex
	// regions are in order of address.
	// +checklocks:mu
	regions []*fakeRegion
	// +checklocks:mu
	committed uint64
	// +checklocks:mu
	peak uint64
}

type fakeRegion struct {
	base, size uint64
	protect    uint32
	pages      [][]byte // nil: reserved
}

func newFakeSpace(ptr int) *fakeSpace { return &fakeSpace{ptr: uint64(ptr)} }

func (f *fakeSpace) PointerSize() int { return int(f.ptr) }
func (f *fakeSpace) PageSize() int    { return int(fakePage) }

func (f *fakeSpace) Reserve(size uint64, protect uint32) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if size == 0 || size%fakePage != 0 || (protect != PageReadWrite && protect != PageExecuteReadWrite) {
		return 0, fmt.Errorf("Reserve(%#x, %#x): invalid", size, protect)
	}
	low, high := uint64(0x7FF000000000), uint64(0x7FFFFFFE0000)
	if f.ptr == 4 {
		low, high = 0x400000, 0x7FFE0000
	}
	i := 0
	for ; i < len(f.regions); i++ {
		if r := f.regions[i]; low+size <= r.base {
			break
		} else {
			low = alignUp(r.base+r.size, granularity)
		}
	}
	if low+size > high || size > high {
		return 0, errors.New("no address space")
	}
	f.regions = slices.Insert(f.regions, i, &fakeRegion{low, size, protect, make([][]byte, size/fakePage)})
	return low, nil
}

// find is the region of [addr, addr+size), nil if that is not inside one.
//
// +checklocks:f.mu
func (f *fakeSpace) find(addr, size uint64) *fakeRegion {
	i, _ := slices.BinarySearchFunc(f.regions, addr, func(r *fakeRegion, addr uint64) int {
		if r.base+r.size <= addr {
			return -1
		}
		return 1
	})
	if i == len(f.regions) || addr < f.regions[i].base || addr+size > f.regions[i].base+f.regions[i].size || addr+size < addr {
		return nil
	}
	return f.regions[i]
}

func (f *fakeSpace) Commit(addr, size uint64, protect uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.find(addr, size)
	if r == nil || size == 0 || addr%fakePage != 0 || size%fakePage != 0 || protect != r.protect {
		return fmt.Errorf("Commit(%#x, %#x, %#x): invalid", addr, size, protect)
	}
	pages := r.pages[(addr-r.base)/fakePage:][:size/fakePage]
	n := uint64(0)
	for _, p := range pages {
		if p == nil {
			n += fakePage
		}
	}
	if f.limit != 0 && f.committed+n > f.limit {
		return errors.New("commitment limit")
	}
	for i := range pages {
		if pages[i] == nil {
			pages[i] = make([]byte, fakePage)
		}
	}
	f.committed += n
	f.peak = max(f.peak, f.committed)
	return nil
}

func (f *fakeSpace) Decommit(addr, size uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.find(addr, size)
	if r == nil || size == 0 || addr%fakePage != 0 || size%fakePage != 0 {
		return fmt.Errorf("Decommit(%#x, %#x): invalid", addr, size)
	}
	f.drop(r.pages[(addr-r.base)/fakePage:][:size/fakePage])
	return nil
}

// +checklocks:f.mu
func (f *fakeSpace) drop(pages [][]byte) {
	for i := range pages {
		if pages[i] != nil {
			pages[i] = nil
			f.committed -= fakePage
		}
	}
}

func (f *fakeSpace) Release(base uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.find(base, 1)
	if r == nil || r.base != base {
		return fmt.Errorf("Release(%#x): %w", base, ErrAccess)
	}
	f.drop(r.pages)
	f.regions = slices.DeleteFunc(f.regions, func(o *fakeRegion) bool { return o == r })
	return nil
}

func (f *fakeSpace) Read(addr uint64, b []byte) error {
	return f.each(addr, b, func(page, b []byte) { copy(b, page) })
}

func (f *fakeSpace) Write(addr uint64, b []byte) error {
	return f.each(addr, b, func(page, b []byte) { copy(page, b) })
}

// each moves bytes page by page, having made sure that all are committed.
func (f *fakeSpace) each(addr uint64, b []byte, move func(page, b []byte)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for check := range 2 {
		for a, rest := addr, b; len(rest) > 0; {
			r := f.find(a, 1)
			if r == nil || r.pages[(a-r.base)/fakePage] == nil {
				return fmt.Errorf("%#x: %w", a, ErrAccess)
			}
			page := r.pages[(a-r.base)/fakePage][a%fakePage:]
			n := min(len(page), len(rest))
			if check == 1 {
				move(page[:n], rest[:n])
			}
			a, rest = a+uint64(n), rest[n:]
		}
	}
	return nil
}

// used is how many bytes are committed now, and how many were at most.
func (f *fakeSpace) used() (now, peak uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.committed, f.peak
}

// region is the base and size of the reservation that addr is in, and how many there are in all.
func (f *fakeSpace) region(addr uint64) (base, size uint64, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.find(addr, 1); r != nil {
		base, size = r.base, r.size
	}
	return base, size, len(f.regions)
}

// seeded is a source for Options.Random that is the same at every run.
func seeded(seed uint64) func() uint64 {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 1))
	return func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return r.Uint64()
	}
}

// protection is that of the reservation addr is in.
func (f *fakeSpace) protection(addr uint64) uint32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.find(addr, 1); r != nil {
		return r.protect
	}
	return 0
}

// coarse is a fakeSpace with pages of 16 KiB.
type coarse struct{ *fakeSpace }

const coarsePage = 0x4000

func (c coarse) PageSize() int { return coarsePage }

func (c coarse) Reserve(size uint64, protect uint32) (uint64, error) {
	if size%coarsePage != 0 {
		return 0, fmt.Errorf("Reserve(%#x): not in pages", size)
	}
	return c.fakeSpace.Reserve(size, protect)
}

func (c coarse) Commit(addr, size uint64, protect uint32) error {
	if addr%coarsePage != 0 || size%coarsePage != 0 {
		return fmt.Errorf("Commit(%#x, %#x): not in pages", addr, size)
	}
	return c.fakeSpace.Commit(addr, size, protect)
}

func (c coarse) Decommit(addr, size uint64) error {
	if addr%coarsePage != 0 || size%coarsePage != 0 {
		return fmt.Errorf("Decommit(%#x, %#x): not in pages", addr, size)
	}
	return c.fakeSpace.Decommit(addr, size)
}
