# What `cmake --install` leaves is enough to build and run another program: cmake -P, with BUILD (the build folder),
# DENSE (the program), SOURCE (the repository), CXX and WORK (a folder to work in, made anew).
function(run)
  execute_process(COMMAND ${ARGN} OUTPUT_VARIABLE out ERROR_VARIABLE out RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}: ${result}\n${out}")
  endif()
  set(out "${out}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${WORK})
run(${CMAKE_COMMAND} --install ${BUILD} --component library --prefix ${WORK}/installed)
# nothing of the repository or of the place it was installed to first may be needed
file(RENAME ${WORK}/installed ${WORK}/prefix)
file(COPY ${SOURCE}/tests/consumer DESTINATION ${WORK})
file(COPY ${SOURCE}/examples/generate.cpp DESTINATION ${WORK}/consumer)
run(${CMAKE_COMMAND} -S ${WORK}/consumer -B ${WORK}/build -G Ninja -DCMAKE_PREFIX_PATH=${WORK}/prefix
  -DCMAKE_CXX_COMPILER=${CXX} "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Wpedantic -Werror")
run(${CMAKE_COMMAND} --build ${WORK}/build)
run(${DENSE} init --model llama --vocab_size 7 --hidden_size 8 --intermediate_size 12 --num_hidden_layers 1
  --num_attention_heads 2 ${WORK}/model)
run(${WORK}/build/consumer ${WORK}/model)
if(NOT out MATCHES "^21 logits, the last one -?0\\.[0-9]+\n$")
  message(FATAL_ERROR "consumer: expected \"21 logits, the last one ...\", got ${out}")
endif()
run(${DENSE} train --steps 1 --time 8 --model.n_layer 1 --model.n_embd 8 --out ${WORK}/names)
run(${WORK}/build/generate ${WORK}/names Em)
string(LENGTH "${out}" length)
if(NOT out MATCHES "^Em" OR length LESS 4)
  message(FATAL_ERROR "generate: expected Em and more, got ${out}")
endif()
file(REMOVE_RECURSE ${WORK})
