"""The messages of the Open Inference Protocol over gRPC.

They are built in a private pool of descriptors: the generated ones of two clients cannot be in one process, since all
register the package `inference`.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"
# Fields of each message: NAME:NUMBER:TYPE, with `*` for several values. Fields that are not read, such as parameters
# of a request, are left out. A map is a list of pairs. https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto
MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live:1:bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready:1:bool",
    "ModelReadyRequest": "name:1:string version:2:string",
    "ModelReadyResponse": "ready:1:bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name:1:string version:2:string extensions:3:string*",
    "ModelMetadataRequest": "name:1:string version:2:string",
    "TensorMetadata": "name:1:string datatype:2:string shape:3:int64*",
    "ModelMetadataResponse": (
        "name:1:string versions:2:string* platform:3:string inputs:4:TensorMetadata* outputs:5:TensorMetadata*"
    ),
    "InferTensorContents": (
        "bool_contents:1:bool* int_contents:2:int32* int64_contents:3:int64* uint_contents:4:uint32* "
        "uint64_contents:5:uint64* fp32_contents:6:float* fp64_contents:7:double* bytes_contents:8:bytes*"
    ),
    "InferTensor": "name:1:string datatype:2:string shape:3:int64* contents:5:InferTensorContents",
    "RequestedOutput": "name:1:string",
    "ModelInferRequest": (
        "model_name:1:string model_version:2:string id:3:string inputs:5:InferTensor* outputs:6:RequestedOutput* "
        "raw_input_contents:7:bytes*"
    ),
    "InferParameter": "string_param:3:string",
    "NamedParameter": "key:1:string value:2:InferParameter",
    "ModelInferResponse": (
        "model_name:1:string model_version:2:string id:3:string parameters:4:NamedParameter* outputs:5:InferTensor* "
        "raw_output_contents:6:bytes*"
    ),
}


def build_messages() -> dict[str, Any]:
    """Return the class of each message."""
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package="inference", syntax="proto3")
    field_type = descriptor_pb2.FieldDescriptorProto
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for name_number_type in fields.split():
            field, number, kind = name_number_type.split(":")
            added = message.field.add(name=field, number=int(number), label=3 if kind.endswith("*") else 1)
            kind = kind.rstrip("*")
            if kind in MESSAGES:
                added.type, added.type_name = field_type.TYPE_MESSAGE, f".inference.{kind}"
            else:
                added.type = getattr(field_type, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{n}")) for n in MESSAGES}


MESSAGE = build_messages()
