package ctl

import (
	"errors"
	"fmt"
	"strings"

	"memfs/mm/heap"
)

// The heaps of a process: the folder .proc/NAME/heaps, with a summary of all of them and a folder for each, by its number.

// PerHeaps is the table of the files about all heaps of a process.
var PerHeaps = []Entry[*Process]{
	{Name: "summary", Perm: 0400, Help: "its heaps: blocks, sizes, overhead, fragmentation, and the buckets of their front ends",
		Render: heapsSummary},
}

// Heap is one heap as its control files describe it.
type Heap struct {
	*Process
	Number int
}

// PerHeap is the table of the files about one heap.
var PerHeap = []Entry[*Heap]{
	{Name: "info", Perm: 0400, Help: "its flags, sizes, overhead, fragmentation and buckets", Render: heapInfo},
	{Name: "walk", Perm: 0400, Help: "what HeapWalk comes by: regions, blocks, uncommitted ranges", Render: heapWalk},
}

// heapFlags are the flags of a heap by name.
var heapFlags = []struct {
	bit  uint32
	name string
}{
	{heap.NoSerialize, "NO_SERIALIZE"}, {heap.Growable, "GROWABLE"}, {heap.GenerateExceptions, "GENERATE_EXCEPTIONS"},
	{heap.TailChecking, "TAIL_CHECKING"}, {heap.FreeChecking, "FREE_CHECKING"},
	{heap.CreateEnableExecute, "CREATE_ENABLE_EXECUTE"}, {heap.PageAllocs, "PAGE_ALLOCS"}, {heap.ValidateAll, "VALIDATE_ALL"},
}

func heapFlagNames(flags uint32) string {
	var s []string
	for _, f := range heapFlags {
		if flags&f.bit != 0 {
			s = append(s, f.name)
		}
	}
	if len(s) == 0 {
		return "0"
	}
	return strings.Join(s, "|")
}

// frontEnd is what HeapCompatibilityInformation says.
func frontEnd(n uint32) string {
	if n == 2 {
		return "LFH"
	}
	return "standard"
}

// damage is why a heap cannot be described.
func damage(err error) string {
	var x *heap.Exception
	if errors.As(err, &x) {
		return fmt.Sprintf("damaged at 0x%x: %s", x.Address, x.Reason)
	}
	return err.Error()
}

func share(f float64) Value { return Hundredths(uint64(100*f + 0.5)) }

// reports are what each of the process's heaps holds, or why that cannot be told.
func (p *Process) reports() (reports []heap.Report, wrong []string) {
	all, t := p.HeapView()
	if all == nil {
		return nil, nil
	}
	for _, n := range all.Numbers() {
		handle := all.Handle(n)
		if handle == 0 {
			continue // destroyed meanwhile
		}
		r, err := t.Report(handle)
		why := ""
		if err != nil {
			r, why = heap.Report{Handle: handle, Number: n, Default: n == 1}, damage(err)
		}
		reports, wrong = append(reports, r), append(wrong, why)
	}
	return reports, wrong
}

func heapsSummary(p *Process) *Doc {
	d := new(Doc)
	reports, wrong := p.reports()
	d.Table("heaps", []Column{
		{Head: "N", Key: "number", Width: 3}, {Head: "Heap", Key: "handle", Width: 12}, {Head: "FrontEnd", Key: "front_end", Width: 8},
		{Head: "Segments", Key: "segments", Width: 8}, {Head: "Reserved", Key: "reserved_bytes", Width: 11},
		{Head: "Committed", Key: "committed_bytes", Width: 11}, {Head: "BusyBlocks", Key: "busy_blocks", Width: 10},
		{Head: "BusyBytes", Key: "busy_bytes", Width: 11}, {Head: "LargeBlocks", Key: "large_blocks", Width: 11},
		{Head: "FreeBlocks", Key: "free_blocks", Width: 10}, {Head: "FreeBytes", Key: "free_bytes", Width: 11},
		{Head: "LargestFree", Key: "largest_free_bytes", Width: 11}, {Head: "Overhead", Key: "overhead_bytes", Width: 10},
		{Head: "Fragmentation", Key: "fragmentation", Width: 13}, {Head: "Buckets", Key: "buckets", Width: 7},
		{Head: "Flags", Key: "flags", Width: 12}, {Head: "Damage", Key: "damage"},
	}, func(yield func([]Value) bool) {
		for i, r := range reports {
			why := None()
			if wrong[i] != "" {
				why = Word(wrong[i])
			}
			if !yield([]Value{Count(uint64(r.Number)), Hex(r.Handle), Word(frontEnd(r.FrontEnd)), Count(uint64(r.Segments)),
				Count(r.Reserved), Count(r.Committed), Count(uint64(r.BusyBlocks)), Count(r.BusyBytes), Count(uint64(r.LargeBlocks)),
				Count(uint64(r.FreeBlocks)), Count(r.FreeBytes), Count(r.LargestFree), Count(r.Overhead), share(r.Fragmentation),
				Count(uint64(len(r.Buckets))), Word(heapFlagNames(r.Flags)), why}) {
				return
			}
		}
	})
	return d
}

// report is what the heap holds.
func (h *Heap) report() (r heap.Report, err error) {
	all, t := h.HeapView()
	if all == nil {
		return r, errors.New("the process has ended")
	}
	return t.Report(all.Handle(h.Number))
}

func heapInfo(h *Heap) *Doc {
	d := new(Doc)
	r, err := h.report()
	if err != nil {
		d.Field("Number", "number", Count(uint64(h.Number)))
		d.Field("Damage", "damage", Word(damage(err)))
		return d
	}
	d.Field("Number", "number", Count(uint64(r.Number)))
	d.Field("Handle", "handle", Hex(r.Handle))
	d.Field("Default", "default", Flag(r.Default))
	d.Field("Flags", "flags", Word(heapFlagNames(r.Flags)))
	d.Field("FrontEnd", "front_end", Word(frontEnd(r.FrontEnd)))
	d.Field("Segments", "segments", Count(uint64(r.Segments)))
	d.Field("Reserved", "reserved_bytes", ByteCount(r.Reserved))
	d.Field("Committed", "committed_bytes", ByteCount(r.Committed))
	d.Field("Uncommitted", "uncommitted_bytes", ByteCount(r.Uncommitted))
	d.Field("BusyBlocks", "busy_blocks", Count(uint64(r.BusyBlocks)))
	d.Field("Busy", "busy_bytes", ByteCount(r.BusyBytes))
	d.Field("LargeBlocks", "large_blocks", Count(uint64(r.LargeBlocks)))
	d.Field("Large", "large_bytes", ByteCount(r.LargeBytes))
	d.Field("FreeBlocks", "free_blocks", Count(uint64(r.FreeBlocks)))
	d.Field("Free", "free_bytes", ByteCount(r.FreeBytes))
	d.Field("LargestFree", "largest_free_bytes", ByteCount(r.LargestFree))
	d.Field("Overhead", "overhead_bytes", ByteCount(r.Overhead))
	d.Field("Fragmentation", "fragmentation", share(r.Fragmentation))
	d.Table("buckets", []Column{
		{Head: "BlockSize", Key: "block_size_bytes", Width: 9}, {Head: "Subsegments", Key: "subsegments", Width: 11},
		{Head: "Blocks", Key: "blocks", Width: 8}, {Head: "Busy", Key: "busy", Width: 8},
	}, func(yield func([]Value) bool) {
		for _, b := range r.Buckets {
			if !yield([]Value{Count(b.BlockSize), Count(uint64(b.Subsegments)), Count(uint64(b.Blocks)), Count(uint64(b.Busy))}) {
				return
			}
		}
	})
	return d
}

// entryKind is what HeapWalk's flags say, in a word.
func entryKind(e *heap.ProcessHeapEntry) string {
	switch {
	case e.Flags&heap.EntryRegion != 0:
		return "region"
	case e.Flags&heap.EntryUncommittedRange != 0:
		return "uncommitted"
	case e.Flags&heap.EntryMoveable != 0:
		return "moveable"
	case e.Flags&heap.EntryBusy != 0:
		return "busy"
	}
	return "free"
}

func heapWalk(h *Heap) *Doc {
	d := new(Doc)
	d.Table("entries", []Column{
		{Head: "Kind", Key: "kind", Width: 11}, {Head: "Address", Key: "address", Width: 12}, {Head: "Size", Key: "size_bytes", Width: 11},
		{Head: "Overhead", Key: "overhead_bytes", Width: 8}, {Head: "Region", Key: "region", Width: 6},
		{Head: "Handle", Key: "handle", Width: 12}, {Head: "Damage", Key: "damage"},
	}, func(yield func([]Value) bool) {
		all, t := h.HeapView()
		if all == nil {
			return
		}
		err := t.Walk(all.Handle(h.Number), func(e *heap.ProcessHeapEntry) bool {
			handle := None()
			if e.Mem != 0 {
				handle = Hex(e.Mem)
			}
			return yield([]Value{Word(entryKind(e)), Hex(e.Data), Count(e.Size), Count(uint64(e.Overhead)),
				Count(uint64(e.RegionIndex)), handle, None()})
		})
		if err != nil {
			yield([]Value{Word("damaged"), None(), None(), None(), None(), None(), Word(damage(err))})
		}
	})
	return d
}
