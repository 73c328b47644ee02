package heap_test

import (
	"context"
	"errors"
	"fmt"

	"memfs/mm/heap"
)

// arena is an address space of one piece: every reservation is committed from the start.
type arena struct {
	memory []byte
	next   uint64
}

const arenaBase = 0x10000

func (a *arena) PointerSize() int { return 8 }
func (a *arena) PageSize() int    { return 4096 }

func (a *arena) Reserve(size uint64, protect uint32) (uint64, error) {
	if a.next+size > uint64(len(a.memory)) {
		return 0, errors.New("arena full")
	}
	base := arenaBase + a.next
	a.next += (size + 0xFFFF) &^ 0xFFFF
	return base, nil
}

func (a *arena) Commit(addr, size uint64, protect uint32) error { return nil }
func (a *arena) Decommit(addr, size uint64) error               { return nil }
func (a *arena) Release(base uint64) error                      { return nil }

func (a *arena) at(addr uint64, n int) ([]byte, error) {
	if addr < arenaBase || addr-arenaBase+uint64(n) > uint64(len(a.memory)) {
		return nil, fmt.Errorf("%#x: %w", addr, heap.ErrAccess)
	}
	return a.memory[addr-arenaBase:][:n], nil
}

func (a *arena) Read(addr uint64, b []byte) error {
	m, err := a.at(addr, len(b))
	copy(b, m)
	return err
}

func (a *arena) Write(addr uint64, b []byte) error {
	m, err := a.at(addr, len(b))
	copy(m, b)
	return err
}

func Example() {
	space := &arena{memory: make([]byte, 4<<20)}
	heaps, err := heap.New(space, heap.Options{})
	if err != nil {
		panic(err)
	}
	t := heaps.Thread(context.Background())

	p, _ := t.HeapAlloc(t.GetProcessHeap(), heap.ZeroMemory, 24)
	size, _ := t.HeapSize(t.GetProcessHeap(), 0, p)
	fmt.Println("size", size, "aligned", p%16 == 0)

	movable, _ := t.GlobalAlloc(heap.GHND, 100)
	address, _ := t.GlobalLock(movable)
	flags, _ := t.GlobalFlags(movable)
	fmt.Println("handle", movable%16, "block", address%16, "locked", flags)

	// One byte too many, and the next block's header is gone.
	space.Write(p, make([]byte, 25))
	ok, _ := t.HeapValidate(t.GetProcessHeap(), 0, 0)
	_, err = t.HeapFree(t.GetProcessHeap(), 0, p)
	var raised *heap.Exception
	errors.As(err, &raised)
	fmt.Printf("valid %v, HeapFree raises %#x\n", ok, raised.Status)
	// Output:
	// size 24 aligned true
	// handle 8 block 0 locked 1
	// valid false, HeapFree raises 0xc0000374
}
