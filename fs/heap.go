package fs

import (
	"strconv"

	"memfs/fs/ctl"
	"memfs/mm/heap"
)

// The heaps of a process in the control tree:
//
//	.proc/NAME/heaps/           a folder: ctl.PerHeaps
//	.proc/NAME/heaps/N/         a heap, by its number; 1 is the default heap: ctl.PerHeap
//
// and, for who looks for a file of that name, .proc/NAME/heaps.json, which is heaps/summary.json.

// heapsName is the folder of a process's heaps.
const heapsName = "heaps"

// heapNumberShift is where the number of a heap is in the lower part of a node's id, above its process's.
const heapNumberShift = 32

// gflags are the words of a process's name that set checks of heaps, as gflags(1) calls them, and terminate, which is
// HeapEnableTerminationOnCorruption.
var gflags = map[string]uint32{
	"htc": heap.GlobalFlagTailCheck, "hfc": heap.GlobalFlagFreeCheck, "hpc": heap.GlobalFlagValidateParameters,
	"hvc": heap.GlobalFlagValidateAll, "hpa": heap.GlobalFlagPageAllocs,
}

// findHeaps is an entry of a process's heaps: of the folder of all, or of one heap's.
func findHeaps(dir *controlNode, name string) (controlNode, bool) {
	n := controlNode{kind: dir.kind, proc: dir.proc, heap: dir.heap}
	row, json := -1, false
	switch dir.kind {
	case controlHeaps:
		if number, err := strconv.Atoi(name); err == nil {
			n.kind, n.heap = controlHeap, number
			return n, strconv.Itoa(number) == name && n.hasHeap()
		}
		row, json = ctl.Lookup(ctl.PerHeaps, name)
	case controlHeap:
		row, json = ctl.Lookup(ctl.PerHeap, name)
	}
	n.row, n.json = row+1, json
	return n, row >= 0
}

// hasHeap says whether the node's process has the node's heap, now.
func (n *controlNode) hasHeap() bool {
	all, _ := n.proc.process().HeapView()
	return n.heap > 0 && n.heap < 1<<(controlRowBits-heapNumberShift) && all != nil && all.Handle(n.heap) != 0
}

// heapNames is what a folder of heaps has.
func heapNames(dir *controlNode) (names []string) {
	if dir.kind == controlHeap {
		for name := range ctl.Names(ctl.PerHeap) {
			names = append(names, name)
		}
		return names
	}
	for name := range ctl.Names(ctl.PerHeaps) {
		names = append(names, name)
	}
	if all, _ := dir.proc.process().HeapView(); all != nil {
		for _, number := range all.Numbers() {
			names = append(names, strconv.Itoa(number))
		}
	}
	return names
}

// heapRows is how many rows the node's kind has, the folder itself as row 0.
func heapRows(k controlKind) int {
	if k == controlHeap {
		return 1 + len(ctl.PerHeap)
	}
	return 1 + len(ctl.PerHeaps)
}

// renderHeaps is what a file about heaps says.
func renderHeaps(n *controlNode) *ctl.Doc {
	if n.kind == controlHeap {
		return ctl.PerHeap[n.row-1].Render(&ctl.Heap{Process: n.proc.described(), Number: n.heap})
	}
	return ctl.PerHeaps[n.row-1].Render(n.proc.described())
}
