package fs

import (
	"sync"
	"sync/atomic"
	"syscall"
)

const tableShards = 64

// nodeTable finds nodes by id. It is in shards because every request looks its node up, and forgets come by the thousand.
type nodeTable struct {
	lastID atomic.Uint64
	shards [tableShards]nodeShard
}

type nodeShard struct {
	mu sync.RWMutex
	// +checklocks:mu
	nodes map[uint64]*node
}

func (t *nodeTable) init() {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		s.nodes = make(map[uint64]*node)
		s.mu.Unlock()
	}
}

// newID is an id that no node has or had.
func (t *nodeTable) newID() uint64 { return t.lastID.Add(1) }

func (t *nodeTable) shard(id uint64) *nodeShard { return &t.shards[id%tableShards] }

// get is the node of an id, or nil.
func (t *nodeTable) get(id uint64) *node {
	s := t.shard(id)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.nodes[id]
}

func (t *nodeTable) add(n *node) {
	s := t.shard(n.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[n.id] = n
}

func (t *nodeTable) remove(n *node) {
	s := t.shard(n.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.nodes, n.id)
}

// each calls f for every node there is, in no order. f may remove nodes.
func (t *nodeTable) each(f func(*node)) {
	for i := range t.shards {
		for _, n := range t.shards[i].all() {
			f(n)
		}
	}
}

func (s *nodeShard) all() []*node {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]*node, 0, len(s.nodes))
	for _, n := range s.nodes {
		all = append(all, n)
	}
	return all
}

// handle is one open of a regular file.
type handle struct {
	node   *node
	access uint32 // O_RDONLY, O_WRONLY or O_RDWR
	seen   uint32 // node.failures already reported here; guarded by node.mu
}

func (h *handle) writable() bool { return h.access != syscall.O_RDONLY }

// handleTable gives open files their numbers.
type handleTable struct {
	mu sync.Mutex
	// +checklocks:mu
	last uint64
	// +checklocks:mu
	open map[uint64]*handle
}

func (t *handleTable) init() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open = make(map[uint64]*handle)
}

func (t *handleTable) add(h *handle) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	t.open[t.last] = h
	return t.last
}

// get is the handle of a number, or nil.
func (t *handleTable) get(fh uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open[fh]
}

// remove takes a handle out of the table; nil if it was not in.
func (t *handleTable) remove(fh uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.open[fh]
	delete(t.open, fh)
	return h
}
